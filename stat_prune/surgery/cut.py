"""Smaller layers in place of the dense ones, and the record of it in the config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.errors import NonFiniteWeightsError
from stat_prune.families import architecture_of, find_blocks, remember
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import (
    in_memory,
    is_dispatched,
    is_offloaded,
    loaded,
    shared_copy,
    to_cut,
)
from stat_prune.model.folded_consumer import FoldedConsumer, InputCorrection
from stat_prune.model.model_checks import beyond_range
from stat_prune.model.modeling_stat_prune import (
    compute_with_own_dims,
    compute_without_heads,
    set_attributes,
)
from stat_prune.model.position_bias import separate_position_biases
from stat_prune.model.projections import projection
from stat_prune.surgery.linear_layers import check_readings, correct_readers, replace_layer
from stat_prune.surgery.recording import record


def apply(model: PreTrainedModel, folded: Sequence[FoldedConsumer]) -> None:
    """Remove units from a model, in place, and record the new shapes in its config.

    Where none is left of a block, what remains of it is the bias of its consumer. Blocks that lose
    no unit and keep their weights are left as they are, to the bit. When every
    layer ends with the same sizes and the config can say them, the config does and no record is
    kept.

    Parameters
    ----------
    model : PreTrainedModel
    folded : sequence of FoldedConsumer

    Raises
    ------
    NonFiniteWeightsError
        If a weight is beyond the numbers of its dtype; nothing is changed then.
    """
    architecture = architecture_of(model)
    changes = _cut(model, folded)
    if changes is not None:
        record(model, changes)
        remember(model, architecture)  # which may have gone by the sizes in the config


def _cut(model: PreTrainedModel, folded: Sequence[FoldedConsumer]) -> dict[str, Any] | None:
    """Make the layers smaller; what to record of it, or None if nothing has changed."""
    for one in folded:
        _check_range(model.base_model, one)
    base, before = model.base_model, find_blocks(model)
    linear: dict[str, list[Any]] = {}
    parameters: dict[str, list[int]] = {}
    attributes: dict[str, dict[str, int]] = {}
    no_heads: dict[str, dict[str, Any]] = {}
    head_dims: dict[str, dict[str, Any]] = {}
    added_biases: list[str] = []
    kept: dict[str, Tensor] = {}
    for members in _together(folded):
        if not any(_changes(base, one) for one in members):
            continue
        block = members[0].block
        if block.expert_of:
            shapes, size = _shrink_experts(base, members)
            parameters |= shapes
            attributes |= _follow(base, block, size, size)
            continue
        (one,) = members
        if one.bias is not None and not block.consumer_bias:
            added_biases.append(block.consumer)
        if len(one.units) < block.num_units:
            kept[block.name] = one.units
        linear |= _shrink(base, one)
        head_dims |= _keep_pairs(base, one)
        attributes |= _follow(base, block, len(one.units), len(block.groups(one.units)))
        if block.kind == "heads" and len(one.units) == 0:
            no_heads |= _remove_heads(base, block)
    if not linear and not parameters:
        return None
    return {
        "linear": linear,
        "parameters": parameters,
        "attributes": attributes,
        "position_bias": separate_position_biases(base, before, kept),
        "no_heads": no_heads,
        "head_dims": head_dims,
        "added_biases": added_biases,
    }


def whole_consumer(model: PreTrainedModel, block: Block) -> FoldedConsumer:
    """The consumer of a block of which nothing leaves, as it is."""
    with loaded(model.base_model, block.consumer) as consumer:
        weight = consumer.weight.detach().double()
    return FoldedConsumer(block, torch.arange(block.num_units), weight, None, output_error=0.0)


def cut_copy(model: PreTrainedModel, sizes: Sequence[tuple[Block, int, int]]) -> PreTrainedModel:
    """A model of given sizes, to be timed: units are any, corrections none.

    Parameters
    ----------
    model : PreTrainedModel
        Unchanged. The copy shares every tensor with it that is not cut.
    sizes : sequence of (Block, int, int)
        Units and key/value heads to keep; blocks that are not named stay whole.
    """
    copied = shared_copy(model)
    apply(copied, [_first_units(copied, *size) for size in sizes])
    return copied


def pruned_copy(
    model: PreTrainedModel,
    folded: Sequence[FoldedConsumer],
    head: Sequence[InputCorrection] = (),
) -> PreTrainedModel:
    """A copy of a model without what `folded` removes, to be measured: its config is the model's.

    What it leaves is shared with the model. `head` is for layers behind the blocks, by their paths
    below the model.
    """
    if is_dispatched(model):
        with to_cut(model) as pruned:
            _cut(pruned, folded)
            correct_readers(pruned, head)
        return pruned
    pruned = shared_copy(model)
    _cut(pruned, folded)
    correct_readers(pruned, head)
    return pruned


def _first_units(
    model: PreTrainedModel, block: Block, num_units: int, num_groups: int
) -> FoldedConsumer:
    """As many units of each of the first key/value heads."""
    members = torch.arange(num_units // max(num_groups, 1))
    units = block.units_at(torch.arange(num_groups), members)
    weight = projection(model.base_model, block.consumer).weight.detach()
    channels = block.channels(units).to(weight.device)
    return FoldedConsumer(block, units, weight[:, channels], bias=None, output_error=0.0)


def _together(folded: Sequence[FoldedConsumer]) -> list[list[FoldedConsumer]]:
    """The consumers one by one, but those of a set of experts together."""
    sets: dict[str, list[FoldedConsumer]] = {}
    for one in folded:
        sets.setdefault(one.block.set_name, []).append(one)
    return list(sets.values())


def _changes(base_model: nn.Module, folded: FoldedConsumer) -> bool:
    if len(folded.units) < folded.block.num_units or folded.readings:
        return True
    with loaded(base_model, folded.block.consumer) as consumer:
        return not torch.equal(folded.weight.to(consumer.weight), consumer.weight)


def _check_range(base_model: nn.Module, folded: FoldedConsumer) -> None:
    dtype = projection(base_model, folded.block.consumer).weight.dtype
    check_readings(base_model, folded.readings)
    largest = beyond_range((folded.weight, folded.bias), dtype)
    if largest is not None:
        raise NonFiniteWeightsError(
            f"What {folded.block.consumer} is to make of the channels that stay of "
            f"{folded.block.name} takes a weight of {largest:.3g}, which {dtype} cannot "
            "hold. Prune the model in float32, with more examples, and convert the result."
        )


def _shrink(base_model: nn.Module, folded: FoldedConsumer) -> dict[str, list[Any]]:
    """Slice the producers of a block and replace its consumer; the new shapes, by path."""
    block = folded.block
    shapes = {}
    for producer in block.producers:
        with loaded(base_model, producer.path) as old:
            rows = block.rows(producer, folded.units).to(old.weight.device)
            weight, bias = old.weight[rows], None if old.bias is None else old.bias[rows]
            weight, bias = folded.read_by(producer.path, weight, bias)
        shapes[producer.path] = replace_layer(base_model, producer.path, weight, bias)
    with loaded(base_model, block.consumer) as consumer:
        bias = consumer.bias
        if folded.bias is not None:
            added = folded.bias.to(consumer.weight.device)
            bias = added if bias is None else bias.detach().double() + added
    shapes[block.consumer] = replace_layer(base_model, block.consumer, folded.weight, bias)
    return shapes


def _remove_heads(base_model: nn.Module, block: Block) -> dict[str, dict[str, Any]]:
    """Let the attention layer of a block compute without heads; what to record, by its path."""
    ((path, _),) = block.attributes.items()
    inside = block.consumer.startswith(f"{path}.")
    values: dict[str, Any] = {}
    if inside:
        values["output"] = block.consumer.removeprefix(f"{path}.")
    if block.position_bias == "own":
        values["passes_bias"] = True
    compute_without_heads(base_model.get_submodule(path), **values)
    return {path: values}


def _keep_pairs(base_model: nn.Module, folded: FoldedConsumer) -> dict[str, dict[str, Any]]:
    """Let key/value heads whose pairs of turned dimensions are their own keep these."""
    block = folded.block
    path = next(iter(block.attributes), None)
    attention: Any = None if path is None else base_model.get_submodule(path)
    pairs = getattr(attention, "rotary_pairs", None)
    if path is None or pairs is None:
        return {}
    values: dict[str, Any] = {
        "query_key": block.query_key_size,
        "value": block.unit_size,
        "pairs": [pairs[group] for group in block.groups(folded.units).tolist()],
    }
    compute_with_own_dims(attention, **values)
    return {path: values}


def _shrink_experts(
    base_model: nn.Module, members: Sequence[FoldedConsumer]
) -> tuple[dict[str, list[int]], int]:
    """New tensors for a set of experts: their shapes by path, and the neurons each expert has.

    Experts that keep fewer than the others, or are not among `members`, are as they were: their
    tensor takes the largest, rounded up, and the rest of it is zero, which adds nothing.
    """
    block = members[0].block
    path, _, _ = block.consumer.rpartition(".")
    paths = [producer.path.rpartition(".")[0] for producer in block.producers]
    owner_path, _, name = path.rpartition(".")
    owner = base_model.get_submodule(owner_path)
    old = getattr(owner, name)
    by_expert = {projection(base_model, one.block.consumer).expert: one for one in members}
    every = torch.arange(block.num_units)
    units = [by_expert[e].units.cpu() if e in by_expert else every for e in range(len(old))]
    size = -(-max(map(len, units)) // block.multiple) * block.multiple
    new: dict[str, Tensor] = {}
    with torch.no_grad(), in_memory(owner):
        old = getattr(owner, name)
        new[path] = old.new_zeros(len(old), block.output_size, size)
        for expert, kept in enumerate(units):
            one = by_expert.get(expert)
            weight = old[expert] if one is None else one.weight
            new[path][expert, :, : len(kept)] = weight
        for producer, its_path in zip(block.producers, paths, strict=True):
            stack = getattr(owner, its_path.rpartition(".")[2])
            rows = len(producer.parts) * size
            new[its_path] = stack.new_zeros(len(stack), rows, block.input_size)
            for expert, kept in enumerate(units):
                for start, part in zip(
                    range(0, rows, size), block.part_rows(producer), strict=True
                ):
                    taken = stack[expert, part[kept].reshape(-1).to(stack.device)]
                    new[its_path][expert, start : start + len(kept)] = taken
    for its_path, tensor in new.items():
        tensor = tensor.cpu() if is_offloaded(owner) else tensor
        attribute = its_path.rpartition(".")[2]
        trained = getattr(owner, attribute).requires_grad
        setattr(owner, attribute, nn.Parameter(tensor, requires_grad=trained))
    return {its_path: list(tensor.shape) for its_path, tensor in new.items()}, size


def _follow(
    base_model: nn.Module, block: Block, num_units: int, num_groups: int
) -> dict[str, dict[str, int]]:
    """Set the counts that modules remember; what was set, by path."""
    record = block.remembered(num_units, num_groups)
    for path, values in record.items():
        set_attributes(base_model.get_submodule(path), values)
    return record
