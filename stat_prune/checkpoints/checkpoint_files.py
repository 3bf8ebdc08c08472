"""Which weight of a model each part of a checkpoint's safetensors files is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from stat_prune.checkpoints.weight_files import read_weight
from stat_prune.errors import LoadError, ModelError


@dataclass(frozen=True)
class Source:
    """Where a weight of the model comes from.

    Attributes
    ----------
    parts : tuple of (Path, str, str)
        File, key, and the pattern of the conversion that takes the key.
    converter : WeightConverter or None
        What makes the weight of the parts, where the model has another layout than the files:
        experts are one tensor in the model, and one each on disk.
    """

    parts: tuple[tuple[Path, str, str], ...]
    converter: WeightConverter | None = None

    def read(self, name: str, model: PreTrainedModel) -> Tensor:
        """The weight, as the model has it.

        Raises
        ------
        LoadError
            If a file cannot be read.
        """
        if self.converter is None:
            ((file, key, _),) = self.parts
            return read_weight(file, key)
        for file, key, pattern in self.parts:
            reading: Any = partial(read_weight, file, key)  # annotated as a future alone
            self.converter.add_tensor(name, key, pattern, reading)
        made = self.converter.convert(name, model=model, config=model.config)
        found = made[name]
        tensor: Tensor = found[0] if isinstance(found, list) else found
        return tensor


def sources_of(model: PreTrainedModel, held: dict[str, Path]) -> dict[str, Source]:
    """Where every parameter and saved buffer comes from, by its name in the model.

    Raises
    ------
    LoadError
        If one comes from nowhere.
    ModelError
        If several are made of one that is stored.
    """
    state = model.state_dict()
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    sources: dict[str, Source] = {}
    parts: dict[str, list[tuple[Path, str, str]]] = {}
    for key in sorted(held, key=dot_natural_key):  # experts in the order of their numbers
        name, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if pattern is not None and name in state and key != name:
            if len(by_pattern[pattern].target_patterns) > 1:
                raise ModelError(
                    f"{type(model).__name__} makes several weights of {key}, which needs the whole "
                    "model. Load it and use stat_prune.prune."
                )
            parts.setdefault(name, []).append((held[key], key, pattern))
        else:
            sources[name if name in state else key] = Source(((held[key], key, ""),))
    for name, taken in parts.items():
        sources[name] = Source(tuple(taken), by_pattern[taken[0][2]])
    for group in _tied(model):
        known = next((sources[name] for name in group if name in sources), None)
        sources |= {name: known for name in group if known is not None and name not in sources}
    missing = [name for name in state if name not in sources]
    if missing:
        raise LoadError(
            f"The checkpoint has no weights for {len(missing)} parameters of "
            f"{type(model).__name__}, such as {missing[0]}. Save the whole model again; or, where "
            "it has no such head, pass auto_class='AutoModel' (--auto-class AutoModel)."
        )
    return {name: sources[name] for name in state}


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]
