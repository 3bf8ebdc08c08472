"""Smaller linear layers in place of the dense ones, and the record of it in the config."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.architectures import architecture_of, find_blocks
from stat_prune.blocks import Block, linear
from stat_prune.correction import FoldedConsumer

#: Version of the record in the config.
RECORD_FORMAT = 1


def apply(model: PreTrainedModel, folded: Sequence[FoldedConsumer]) -> None:
    """Remove units from a model, in place, and record the new shapes in its config.

    Blocks that lose no unit and keep their weight are left as they are, to the bit. When every
    layer ends with the same sizes and the config can say them, the config does and no record is
    kept.

    Parameters
    ----------
    model : PreTrainedModel
    folded : sequence of FoldedConsumer
    """
    record = getattr(model.config, "stat_prune", None) or {"linear": {}, "attributes": {}}
    changed: dict[str, nn.Linear] = {}
    attributes: dict[str, dict[str, int]] = {}
    added_biases = list(record.get("added_biases", []))
    for consumer in folded:
        if _changes(model.base_model, consumer):
            path = consumer.block.consumer
            if consumer.bias is not None and linear(model.base_model, path).bias is None:
                added_biases.append(path)
            changed |= _shrink(model.base_model, consumer)
            attributes |= _follow(model.base_model, consumer)
    if not changed:
        return
    shapes = {
        path: [module.out_features, module.in_features, module.bias is not None]
        for path, module in changed.items()
    }
    # No config says that some layers of a family have a bias which its stock layers lack.
    stock = None if added_biases else uniform_config(model)
    if stock is None:
        model.config.stat_prune = {
            "format": RECORD_FORMAT,
            "linear": {**record["linear"], **shapes},
            "attributes": {**record["attributes"], **attributes},
        }
        if added_biases:
            model.config.stat_prune["added_biases"] = added_biases
        return
    for name, value in stock.items():
        setattr(model.config, name, value)
    if hasattr(model.config, "stat_prune"):
        del model.config.stat_prune


def cut_copy(model: PreTrainedModel, sizes: Sequence[tuple[Block, int, int]]) -> PreTrainedModel:
    """A model of given sizes, to be timed: units are any, corrections none.

    Parameters
    ----------
    model : PreTrainedModel
        Unchanged. The copy shares every tensor with it that is not cut.
    sizes : sequence of (Block, int, int)
        Units and key/value heads to keep; blocks that are not named stay whole.
    """
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copied = copy.deepcopy(model, tensors)
    apply(copied, [_first_units(copied, *size) for size in sizes])
    return copied


def _first_units(
    model: PreTrainedModel, block: Block, num_units: int, num_groups: int
) -> FoldedConsumer:
    """As many units of each of the first key/value heads."""
    members = torch.arange(num_units // num_groups)
    units = (torch.arange(num_groups)[:, None] * block.units_per_group + members).reshape(-1)
    weight = linear(model.base_model, block.consumer).weight.detach()
    channels = block.channels(units).to(weight.device)
    return FoldedConsumer(block, units, weight[:, channels], bias=None, output_error=0.0)


def uniform_config(model: PreTrainedModel) -> dict[str, int] | None:
    """The config fields that say a model's sizes, or None if its family's config cannot.

    It cannot where layers differ, and where the number of heads is bound to the hidden size.
    """
    architecture, blocks = architecture_of(model), find_blocks(model)
    heads = {(b.num_units, b.num_groups, b.unit_size) for b in blocks if b.kind == "heads"}
    neurons = {b.num_units for b in blocks if b.kind == "neurons"}
    if len(heads) > 1 or len(neurons) > 1:
        return None
    fields = {architecture.config_neurons: neurons.pop()}
    num_heads, num_groups, head_size = heads.pop()
    if architecture.config_heads is not None:
        return fields | dict(
            zip(architecture.config_heads, (num_heads, num_groups, head_size), strict=True)
        )
    whole = num_heads * head_size == blocks[0].input_size
    return fields if whole else None


def _changes(base_model: nn.Module, folded: FoldedConsumer) -> bool:
    if len(folded.units) < folded.block.num_units:
        return True
    weight = linear(base_model, folded.block.consumer).weight
    return not torch.equal(folded.weight.to(weight), weight)


def _shrink(base_model: nn.Module, folded: FoldedConsumer) -> dict[str, nn.Linear]:
    """Slice the producers of a block and replace its consumer; what was replaced, by path."""
    block = folded.block
    rows = block.channels(folded.units)
    shared_rows = block.channels(block.groups(folded.units))
    replaced = {}
    for path in block.producers:
        replaced[path] = _replace(base_model, path, rows=rows)
    for path in block.shared_producers:
        replaced[path] = _replace(base_model, path, rows=shared_rows)
    consumer = linear(base_model, block.consumer)
    bias: Tensor | None = consumer.bias
    if folded.bias is not None:
        added = folded.bias.to(consumer.weight.device)
        bias = added if bias is None else bias.detach().double() + added
    replaced[block.consumer] = _replace(base_model, block.consumer, weight=folded.weight, bias=bias)
    return replaced


def _replace(
    base_model: nn.Module,
    path: str,
    *,
    rows: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> nn.Linear:
    """A new linear layer of the old one's dtype, device and gradient flag."""
    old = linear(base_model, path)
    if rows is not None:
        rows = rows.to(old.weight.device)
        weight = old.weight[rows]
        bias = None if old.bias is None else old.bias[rows]
    assert weight is not None
    new = nn.utils.skip_init(
        nn.Linear,
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    with torch.no_grad():
        new.weight.copy_(weight)
        if bias is not None:
            new.bias.copy_(bias)
    new.requires_grad_(old.weight.requires_grad)
    new.train(old.training)
    parent, _, name = path.rpartition(".")
    setattr(base_model.get_submodule(parent), name, new)
    return new


def _follow(base_model: nn.Module, folded: FoldedConsumer) -> dict[str, dict[str, int]]:
    """Set the counts that modules remember; what was set, by path."""
    num_units = len(folded.units)
    values = {
        "heads": num_units,
        "channels": num_units * folded.block.unit_size,
        "heads_per_group": num_units // len(folded.block.groups(folded.units)),
    }
    record: dict[str, dict[str, int]] = {}
    for path, names in folded.block.attributes.items():
        record[path] = {name: values[count] for name, count in names.items()}
        for name, value in record[path].items():
            setattr(base_model.get_submodule(path), name, value)
    return record
