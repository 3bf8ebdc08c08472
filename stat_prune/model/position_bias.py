"""Biases of attention scores by relative position and head, once layers keep different heads.

MPNet makes one bias for the heads of all layers; T5 makes it in the first layer of a stack and
passes it on. A layer that keeps other heads than the next needs the part that is its own. In MPNet
it takes that from what it is given; in T5 each layer gets an embedding of positions with the heads
it keeps, and computes its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import in_memory, is_offloaded
from stat_prune.model.modeling_stat_prune import own_position_bias, position_embedding


def separate_position_biases(
    base_model: nn.Module, blocks: Sequence[Block], kept: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Let attention layers that get biases for other heads than they keep have their own, in place.

    Parameters
    ----------
    base_model : nn.Module
    blocks : sequence of Block
        All of the model, as they were before heads left.
    kept : mapping of str to Tensor of shape (k,), int64
        Heads that stay, by the name of each block that loses some.

    Returns
    -------
    dict of str to dict
        For the record in the config, by the path of the attention layer: what
        `stat_prune.model.modeling_stat_prune.own_position_bias` needs.
    """
    record: dict[str, dict[str, Any]] = {}
    stacks: dict[tuple[str, str], list[Block]] = {}
    for block in blocks:
        if block.position_bias is not None:
            layers, _, _ = block.name.rsplit(".", 2)
            stacks.setdefault((layers, block.part), []).append(block)
    for members in stacks.values():
        cut = [block for block in members if block.name in kept]
        if members[0].position_bias == "all heads":
            record |= {_path(block): _select(base_model, block, kept) for block in cut}
        elif cut:
            record |= _embed(base_model, members, kept)
    for path, values in record.items():
        own_position_bias(base_model.get_submodule(path), **values)
    return record


def _path(block: Block) -> str:
    """Of the block's attention module."""
    return next(iter(block.attributes))


def _select(
    base_model: nn.Module, block: Block, kept: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Which heads of the dense model the attention layer keeps."""
    attention = base_model.get_submodule(_path(block))
    before = getattr(attention, "position_bias_heads", range(block.num_units))
    return {"heads": [before[unit] for unit in kept[block.name].tolist()]}


def _embed(
    base_model: nn.Module, members: Sequence[Block], kept: Mapping[str, Tensor]
) -> dict[str, dict[str, int]]:
    """An embedding of positions for each layer of a stack, where the first has one."""
    record: dict[str, dict[str, int]] = {}
    first = getattr(base_model.get_submodule(_path(members[0])), "relative_attention_bias", None)
    for block in members:
        attention: Any = base_model.get_submodule(_path(block))
        old = getattr(attention, "relative_attention_bias", first)
        record[_path(block)] = {}
        if old is None:  # cross-attention: the bias is zero
            continue
        with in_memory(old):
            units = kept.get(block.name, torch.arange(block.num_units)).to(old.weight.device)
            weight = old.weight.detach()[:, units]
        weight = weight.cpu() if is_offloaded(old) else weight
        buckets = len(weight)
        new = position_embedding(weight, buckets, len(units))
        with torch.no_grad():
            new.weight.copy_(weight)
        new.requires_grad_(old.weight.requires_grad).train(attention.training)
        attention.relative_attention_bias = new
        record[_path(block)] = {"buckets": buckets, "num_heads": len(units)}
    return record
