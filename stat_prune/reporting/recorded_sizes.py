"""What a pruned model's config says of its sizes, beside those of the dense model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.text import Text
from transformers import PreTrainedConfig, PreTrainedModel

from stat_prune.checkpoints.layer_weights import empty_model
from stat_prune.checkpoints.loading import class_of, saved_class
from stat_prune.errors import LoadError
from stat_prune.families import find_blocks
from stat_prune.inferring import describe
from stat_prune.reporting.block_row import BlockRow, dims_kept
from stat_prune.reporting.layer_table import layer_table
from stat_prune.surgery.per_layer_config import forget_layer_sizes


@dataclass(frozen=True)
class RecordedSizes:
    """Sizes of a model, whatever was done to it since it was pruned, once or more often.

    Attributes
    ----------
    model : str
        Its class.
    blocks : list of BlockRow
        What is left of each block of the dense model; errors are not known.
    parameters_before, parameters : int
        Of the dense model and of this one.
    """

    model: str
    blocks: list[BlockRow]
    parameters_before: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without those that are not known."""
        blocks = [
            {name: value for name, value in vars(block).items() if value is not None}
            for block in self.blocks
        ]
        return {**vars(self), "blocks": blocks}

    def table(self) -> Group:
        """For a terminal."""
        about = f"{self.model}: no report of pruning here; sizes are those of its config"
        return Group(Text(about), layer_table(self.blocks))

    def in_one_line(self) -> str:
        """What is left of the dense model."""
        return (
            f"Kept {self.parameters / self.parameters_before:.1%} of the dense model's parameters "
            f"({self.parameters_before:,} -> {self.parameters:,})."
        )


def recorded_sizes(folder: Path) -> RecordedSizes:
    """Sizes of the model in a folder that any `save_pretrained` wrote; no weights are read.

    Raises
    ------
    LoadError
        If the folder holds no model, or its config has no record of pruning.
    """
    config, _ = saved_class(folder)
    if not getattr(config, "stat_prune", None):
        raise LoadError(f"The config in {folder} has no record of pruning.")
    made = class_of(config)
    dense, pruned = dense_model(config, made), _made_by(config, made)
    left = {block.name: block for block in find_blocks(pruned)}
    rows = [
        BlockRow(
            name=block.name,
            kind=block.kind,
            layer=block.layer,
            kept=left[block.name].num_units,
            total=block.num_units,
            kept_groups=left[block.name].num_groups,
            total_groups=block.num_groups,
            activation_error=None,
            output_error=None,
            sensitivity=None,
            **dims_kept(left[block.name], block),
        )
        for block in find_blocks(dense)
    ]
    return RecordedSizes(
        type(pruned).__name__, rows, dense.num_parameters(), pruned.num_parameters()
    )


def dense_model(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """What a pruned model was made from, without weights; sizes are those that its config keeps.

    Parameters
    ----------
    config : PreTrainedConfig
        With a record of sizes.
    model_class : type
        Of transformers.
    """
    config = copy.deepcopy(config)
    del config.stat_prune
    forget_layer_sizes(config)
    return _made_by(config, model_class)


def _made_by(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """A model without weights."""
    model = empty_model(config, model_class, config.dtype or torch.float32)
    describe(model)
    return model
