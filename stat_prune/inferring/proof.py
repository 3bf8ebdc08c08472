"""Proof that a description is right: what it says can leave a model leaves it unchanged.

All weights of the blocks in question are replaced by random ones, in a copy: the proof is of the
code that computes with them, whatever they are. Then

1. units change places, in producers and consumer alike: nothing may change (they are where the
   description says, and none is unlike the others);
2. units become duplicates of others, and leave through `stat_prune.surgery.cut`, while the consumer
   reads the one that stays in their stead: nothing may change (all counts follow).

What is compared is the output of every consumer and of the base model, with a cache of keys and
values too where the model has one.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.families import find_blocks, stacks_of, transformer_layers
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import shared_copy
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import apply

#: Relative to the norm of what is compared.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Moved:
    """Which unit stands at each place of a block; the same for its key/value heads."""

    units: Tensor
    groups: Tensor


def failure_of(model: PreTrainedModel, inputs: dict[str, Tensor], seed: int = 0) -> str | None:
    """What is wrong with the description of a model that is in force; None if it holds.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode; unchanged.
    inputs : dict of str to Tensor
        What its base model reads.
    seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    model = _in_single_precision(model)
    blocks = _to_prove(model)
    if not any(block.num_units > 1 for block in blocks):
        return "there is but one of them in each layer, so that none could leave"
    try:
        dense = _with_random_weights(model, blocks, generator)
        expected, calls = _outputs(dense, blocks, inputs)
        if set(calls) != {1}:
            return f"a forward pass computes some of them {sorted(set(calls))} times, not once"
        exchanged = _own_weights(dense, blocks)
        for block in blocks:
            _exchange(exchanged.base_model, block, _permutation(block, generator))
        error = _difference(_outputs(exchanged, blocks, inputs)[0], expected)
        if not error <= TOLERANCE:
            return f"where units change places, the output changes by {error:.1e}"
        planted, kept = _own_weights(dense, blocks), []
        for block in blocks:
            units, moved = _duplication(block, generator)
            _rearrange_producers(planted.base_model, block, moved)
            kept.append(_without_duplicates(planted.base_model, block, units, moved))
        expected, _ = _outputs(planted, blocks, inputs)
        cut = shared_copy(planted)
        apply(cut, kept)
        found, _ = _outputs(cut, blocks, inputs)
        error = _difference(found, expected)
        if not error <= TOLERANCE:
            return f"where duplicates of others leave, the output changes by {error:.1e}"
        return _cache_failure(cut, inputs, found[-1])
    except Exception as error:  # whatever a forward pass of any model raises
        return f"where units leave, {type(error).__name__} is raised: {error}"


def _in_single_precision(model: PreTrainedModel) -> PreTrainedModel:
    """The model, or a copy of it where its precision is too low for a proof.

    The copy has one layer of each kind, lest it takes much memory.
    """
    if torch.finfo(model.dtype).bits >= 32:
        return model
    copied = shared_copy(model)
    for stack, layers in stacks_of(copied):
        kept = nn.ModuleList(layers[index] for index in _one_of_each_kind(layers))
        copied.base_model.set_submodule(stack.layers, kept)
    wide: PreTrainedModel = copy.deepcopy(copied).float()
    return wide


def _one_of_each_kind(layers: Iterable[nn.Module]) -> list[int]:
    """The first of all layers that differ in their weights alone, for each such set."""
    kinds: dict[Any, int] = {}
    for index, layer in enumerate(layers):
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        classes = tuple(type(module) for module in layer.modules())
        kinds.setdefault((shapes, classes), index)
    return list(kinds.values())


def _to_prove(model: PreTrainedModel) -> list[Block]:
    chosen = _one_of_each_kind(transformer_layers(model))
    return [b for b in find_blocks(model) if b.layer in chosen and not b.fixed]


def _own_weights(model: PreTrainedModel, blocks: Sequence[Block]) -> PreTrainedModel:
    """A copy whose weights of these blocks are its own; all else is shared."""
    copied = shared_copy(model)
    for block in blocks:
        for path in (*(producer.path for producer in block.producers), block.consumer):
            module = copied.base_model.get_submodule(path)
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().clone(), False))
    return copied


@torch.no_grad()
def _with_random_weights(
    model: PreTrainedModel, blocks: Sequence[Block], generator: torch.Generator
) -> PreTrainedModel:
    """Weights of which each counts: attention that is far from uniform, biases that are not 0."""
    copied = _own_weights(model, blocks)
    for block in blocks:
        for path in (*(producer.path for producer in block.producers), block.consumer):
            made = projection(copied.base_model, path)
            scale = 2 * made.weight.shape[1] ** -0.5
            made.weight.copy_(scale * torch.randn(made.weight.shape, generator=generator))
            if made.bias is not None:
                made.bias.copy_(0.2 * torch.randn(made.bias.shape, generator=generator))
    return copied


def _permutation(block: Block, generator: torch.Generator) -> Moved:
    """Key/value heads change places, and query heads within them."""
    groups, members = (
        _derangement(count, generator) for count in (block.num_groups, block.units_per_group)
    )
    return Moved(block.units_at(groups, members), groups)


def _derangement(count: int, generator: torch.Generator) -> Tensor:
    """A random order that is not the usual one."""
    order = torch.randperm(count, generator=generator)
    return order.roll(1) if torch.equal(order, torch.arange(count)) else order


def _duplication(block: Block, generator: torch.Generator) -> tuple[Tensor, Moved]:
    """Units to keep, and what stands at each place once the others are duplicates of one."""
    kept_groups, groups = _duplicates(block.num_groups, generator)
    kept_members, members = _duplicates(block.units_per_group, generator)
    kept = block.units_at(kept_groups, kept_members)
    return kept, Moved(block.units_at(groups, members), groups)


def _duplicates(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the places, rounded up, and a source for all: the first of these for the rest."""
    kept = torch.randperm(count, generator=generator)[: -(-count // 2)].sort().values
    source = torch.full((count,), int(kept[0]))
    source[kept] = kept
    return kept, source


@torch.no_grad()
def _rearrange_producers(base_model: nn.Module, block: Block, moved: Moved) -> None:
    for producer in block.producers:
        made = projection(base_model, producer.path)
        for part, rows in zip(producer.parts, block.part_rows(producer), strict=True):
            order = moved.units if part == "unit" else moved.groups
            for tensor in (made.weight, made.bias):
                if tensor is not None:
                    taken = tensor[rows[order].reshape(-1)]
                    tensor[rows.reshape(-1)] = taken


@torch.no_grad()
def _exchange(base_model: nn.Module, block: Block, moved: Moved) -> None:
    _rearrange_producers(base_model, block, moved)
    weight = projection(base_model, block.consumer).weight
    weight.copy_(weight[:, block.channels(moved.units)])


def _without_duplicates(
    base_model: nn.Module, block: Block, units: Tensor, moved: Moved
) -> FoldedConsumer:
    """The consumer that reads each unit kept in the stead of its duplicates."""
    weight = projection(base_model, block.consumer).weight.detach().double()
    by_unit = weight.reshape(len(weight), block.num_units, block.unit_size)
    summed = torch.zeros_like(by_unit).index_add_(1, moved.units.to(weight.device), by_unit)
    kept = summed[:, units.to(weight.device)].reshape(len(weight), -1)
    return FoldedConsumer(block, units, kept, bias=None, output_error=0.0)


@torch.no_grad()
def _outputs(
    model: PreTrainedModel, blocks: Sequence[Block], inputs: dict[str, Tensor]
) -> tuple[list[Tensor], list[int]]:
    """What each consumer and the base model return, and how often each consumer is called."""
    model = shared_copy(model)  # some models (BigBird) are others once they have been called
    seen: dict[str, list[Tensor]] = {block.consumer: [] for block in blocks}

    def note(path: str) -> Callable[..., None]:
        return lambda _module, _args, output: seen[path].append(output)

    for path in seen:
        model.base_model.get_submodule(path).register_forward_hook(note(path))
    last = model.base_model(**inputs)[0]
    found = [outputs[0] for outputs in seen.values() if outputs]
    return [*found, last], [len(outputs) for outputs in seen.values()]


@torch.no_grad()
def _cache_failure(model: PreTrainedModel, inputs: dict[str, Tensor], full: Tensor) -> str | None:
    """What is wrong with the last token computed from a cache of those before it."""
    ids = inputs["input_ids"]
    parameters = inspect.signature(model.base_model.forward).parameters
    if len(inputs) > 1 or "past_key_values" not in parameters:
        return None  # no cache, or behind an encoder one of the decoder alone
    start: Any = model.base_model(input_ids=ids[:, :-1], use_cache=True)
    cache = getattr(start, "past_key_values", None)
    if cache is None:
        return None
    step: Any = model.base_model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
    error = _difference([step[0][:, -1]], [full[:, -1]])
    if not error <= TOLERANCE:
        return f"with a cache of keys and values, the output changes by {error:.1e}"
    return None


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative difference; NaN counts as one."""
    differences = [
        float((one.double() - other.double()).norm() / other.double().norm())
        for one, other in zip(found, expected, strict=True)
    ]
    return max(differences, key=lambda error: float("inf") if error != error else error)
