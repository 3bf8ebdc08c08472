"""What generation counts by the number of a head: Whisper reads the times of words there."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from stat_prune.errors import GenerationWarning
from stat_prune.families import find_blocks
from stat_prune.model.blocks import Block


def alignment_heads(model: PreTrainedModel, block: Block) -> list[int]:
    """The heads of a cross-attention layer by which the model tells the times of words."""
    if not _attends(block):
        return []
    pairs = getattr(getattr(model, "generation_config", None), "alignment_heads", None) or []
    if not pairs:
        return []
    layers = [one.layer for one in find_blocks(model) if _attends(one)]
    return [head for layer, head in pairs if layers[layer] == block.layer]


def renumber_alignment_heads(
    model: PreTrainedModel, dense: Sequence[Block], kept: Mapping[str, Sequence[int]]
) -> None:
    """Give ``generation_config.alignment_heads`` the heads' new numbers, in place.

    Parameters
    ----------
    model : PreTrainedModel
        Pruned.
    dense : sequence of Block
        Of the model before.
    kept : mapping of str to sequence of int
        By block name, the units that stayed; blocks without an entry are whole.
    """
    generation: Any = getattr(model, "generation_config", None)
    pairs = getattr(generation, "alignment_heads", None)
    if not pairs:
        return
    attending = [block for block in dense if _attends(block)]
    places = [
        {unit: place for place, unit in enumerate(kept.get(one.name, range(one.num_units)))}
        for one in attending
    ]
    left = [[layer, places[layer][head]] for layer, head in pairs if head in places[layer]]
    renumbered = copy.deepcopy(generation)
    renumbered.alignment_heads = left
    renumbered._from_model_config = False  # else it is made anew, without them, when it is loaded
    model.generation_config = renumbered
    if not left:
        warnings.warn(
            f"None of the {len(pairs)} heads by which {type(model).__name__} tells the times of "
            "words (generation_config.alignment_heads) is left: it can no longer do so. Ask for "
            "less, spare their layers with ignore=[...], or name other heads there.",
            GenerationWarning,
            stacklevel=2,
        )


def _attends(block: Block) -> bool:
    """Whether it is a cross-attention layer's."""
    return block.kind == "heads" and block.mask != block.key_mask
