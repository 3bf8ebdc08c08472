"""What the heads of a model read and make, in one pass over some batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from stat_prune.choosing.head_dims import HeadDims
from stat_prune.choosing.rotary_pairs import rotary_of
from stat_prune.families import attentions_of
from stat_prune.measuring.collectors import collect_moments
from stat_prune.model.blocks import Block
from stat_prune.model.running import Batch


def head_dims_of(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Iterable[Batch],
    num_sequences: int,
    precision: str = "float64",
) -> list[HeadDims]:
    """What the heads of a model read and make, in one pass over some batches."""
    reading = [_reading(block, "reads", block.producers[0].path, block.mask) for block in blocks]
    attended = {
        block.name: _reading(block, "attends to", block.producers[1].path, block.key_mask)
        for block in blocks
        if block.key_mask != block.mask
    }
    every = [*blocks, *reading, *attended.values()]
    moments = collect_moments(model, every, batches, precision=precision)
    base = model.base_model
    attentions = attentions_of(model)
    found = []
    for block, reads in zip(blocks, reading, strict=True):
        attention, read = attentions[block.part], moments[reads.name]
        keeps_scores = attention.own_dims == "values"
        keys = attended.get(block.name)
        path = None if keeps_scores else attention.rotary
        found.append(
            HeadDims(
                base,
                block,
                read,
                moments[block.name],
                rotary=None if path is None else rotary_of(base, block, path),
                length=max(round(read.count / num_sequences), 1),
                keeps_scores=keeps_scores,
                key_states=None if keys is None else moments[keys.name],
            )
        )
    return found


def _reading(block: Block, what: str, path: str, mask: str) -> Block:
    """What a linear layer of an attention layer reads, as a block of channels."""
    return replace(
        block,
        name=f"{block.name} {what}",
        consumer=path,
        num_units=block.input_size,
        unit_size=1,
        mask=mask,
    )
