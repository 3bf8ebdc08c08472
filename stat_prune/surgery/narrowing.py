"""Fewer dimensions inside the heads of a layer, and the record of it in the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.errors import NonFiniteWeightsError
from stat_prune.model.blocks import Block
from stat_prune.model.folded_consumer import FoldedConsumer, InputCorrection
from stat_prune.model.model_checks import beyond_range
from stat_prune.model.modeling_stat_prune import (
    compute_with_own_dims,
    set_attributes,
    turns_heads,
)
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import cut_copy, pruned_copy
from stat_prune.surgery.linear_layers import replace_layer
from stat_prune.surgery.recording import record


@dataclass(frozen=True)
class NarrowedHeads:
    """The linear layers of an attention layer whose heads have sizes of their own.

    Attributes
    ----------
    block : Block
        Of the model that is narrowed.
    query_key, value : int
        Dimensions of each head.
    layers : mapping of str to (Tensor, Tensor or None)
        Weight and bias of those that change, by their path below the base model.
    pairs : list of list of int, optional
        Of each key/value head, which pairs of dimensions stay of those that a rotary embedding
        turns, numbered as in the dense model.
    score_error : float
        Relative error of the scores on the calibration set, about what keys have in common.
    output_error : float, optional
        As that of `FoldedConsumer`, with the scores as they were, where values lose dimensions.
    """

    block: Block
    query_key: int
    value: int
    layers: Mapping[str, tuple[Tensor, Tensor | None]]
    pairs: list[list[int]] | None = None
    score_error: float = 0.0
    output_error: float | None = None

    def told(self, folded: FoldedConsumer) -> NarrowedHeads:
        """With what the block's producers are to make of a changed input."""
        layers = {path: folded.read_by(path, *one) for path, one in self.layers.items()}
        return replace(self, layers=layers)

    def moved(self, consumer: str, change: Tensor, shift: Tensor | None) -> NarrowedHeads:
        """With a change of the consumer's weight, and of its bias."""
        weight, bias = self.layers[consumer]
        bias = bias if bias is None or shift is None else bias.to(shift) + shift
        moved = weight.to(change) + change, bias
        return replace(self, layers={**self.layers, consumer: moved})


def narrow(model: PreTrainedModel, narrowed: Sequence[NarrowedHeads]) -> None:
    """Put in the new linear layers, in place, and record their shapes.

    Raises
    ------
    NonFiniteWeightsError
        If a weight is beyond the numbers of the model's dtype; nothing is changed then.
    """
    changes = _narrow(model, [one for one in narrowed if one.layers])
    if changes["linear"]:
        record(model, changes)


def _narrow(model: PreTrainedModel, changed: Sequence[NarrowedHeads]) -> dict[str, Any]:
    """Put in the new layers; what to record of it."""
    base = model.base_model
    for one in changed:
        _check_range(model, one)
    linear: dict[str, Any] = {}
    attributes: dict[str, dict[str, int]] = {}
    dims: dict[str, dict[str, Any]] = {}
    for one in changed:
        for path, (weight, bias) in one.layers.items():
            linear[path] = replace_layer(base, path, weight, bias)
        ((path, counts),) = one.block.attributes.items()
        dims[path] = {"query_key": one.query_key, "value": one.value}
        if one.pairs is not None:
            dims[path]["pairs"] = one.pairs
        compute_with_own_dims(base.get_submodule(path), **dims[path])
        attributes[path] = {
            name: one.block.num_units * one.value
            for name, count in counts.items()
            if count == "channels"
        }
        set_attributes(base.get_submodule(path), attributes[path])
    return {"linear": linear, "attributes": attributes, "head_dims": dims}


def narrowed_copy(
    model: PreTrainedModel,
    folded: Sequence[FoldedConsumer],
    narrowed: Sequence[NarrowedHeads],
    head: Sequence[InputCorrection] = (),
) -> PreTrainedModel:
    """As `pruned_copy`, to be measured, with narrower heads of those that stay."""
    copied = pruned_copy(model, folded, head)
    _narrow(copied, [one for one in narrowed if one.layers])
    return copied


def narrowed_sizes(
    model: PreTrainedModel, sizes: Sequence[tuple[Block, int, int]], dims: tuple[Block, int, int]
) -> PreTrainedModel:
    """As `cut_copy`, to be timed, with the first dimensions of each head of one block.

    Parameters
    ----------
    model : PreTrainedModel
    sizes : sequence of (Block, int, int)
        Units and key/value heads to keep of other blocks.
    dims : (Block, int, int)
        Of heads, which all stay, with the dimensions of queries and keys, and of values.
    """
    copied = cut_copy(model, sizes)
    first = _first_dims(copied, *dims)
    _narrow(copied, [first] if first.layers else [])
    return copied


def _first_dims(model: PreTrainedModel, block: Block, query_key: int, value: int) -> NarrowedHeads:
    base = model.base_model
    layers: dict[str, tuple[Tensor, Tensor | None]] = {}
    attention = base.get_submodule(next(iter(block.attributes)))
    pairs = getattr(attention, "rotary_pairs", None)
    if query_key < block.query_key_size and turns_heads(attention):
        known = pairs or [list(range(block.query_key_size // 2))] * block.num_groups
        pairs = [one[: query_key // 2] for one in known]
    narrowed = block.with_dims(query_key, value)
    for old, new in zip(block.producers, narrowed.producers, strict=True):
        if old.sizes(block.unit_size) != new.sizes(value):
            rows = [
                part[:, :size].flatten()
                for part, size in zip(block.part_rows(old), new.sizes(value), strict=True)
            ]
            layer = projection(base, old.path)
            bias = None if layer.bias is None else layer.bias.detach()[torch.cat(rows)]
            layers[old.path] = layer.weight.detach()[torch.cat(rows)], bias
    if value < block.unit_size:
        output = projection(base, block.consumer)
        columns = output.weight.detach().unflatten(1, (-1, block.unit_size))[:, :, :value]
        bias = None if output.bias is None else output.bias.detach()
        layers[block.consumer] = columns.flatten(1), bias
    return NarrowedHeads(block, query_key, value, layers, pairs)


def _check_range(model: PreTrainedModel, narrowed: NarrowedHeads) -> None:
    for path, tensors in narrowed.layers.items():
        dtype = projection(model.base_model, path).weight.dtype
        largest = beyond_range(tensors, dtype)
        if largest is not None:
            raise NonFiniteWeightsError(
                f"With fewer dimensions a head {path} takes a weight of {largest:.3g}, which "
                f"{dtype} cannot hold. Prune the model in float32, and convert the result."
            )
