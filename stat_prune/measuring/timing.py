"""A model timed on one batch: what its blocks cost, and how fast what is left of it is."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.errors import TargetError
from stat_prune.families import attentions_of
from stat_prune.measuring.latency import forward_turns, undisturbed_clock
from stat_prune.measuring.latency_cache import cached_table
from stat_prune.measuring.latency_table import LatencyTable, head_sizes, measure_layer, neuron_sizes
from stat_prune.model.blocks import Block
from stat_prune.surgery.cut import cut_copy

#: Numbers of neurons in between are no faster on CPUs, and slower on the tensor cores of GPUs.
MULTIPLE = 8

#: A comparison ends when the standard error of its median is so small, relative to the median ...
PRECISION = 0.007
#: ... or so many seconds are spent, but not before and not after so many rounds.
SECONDS, MIN_ROUNDS, MAX_ROUNDS = 20.0, 9, 200


@dataclass(frozen=True)
class Comparison:
    """A model beside the dense one.

    Attributes
    ----------
    speed_up : float
        Median over rounds of the dense model's time by the other's.
    low, high : float
        Quartiles of it.
    dense_seconds, pruned_seconds : float
        Medians.
    rounds : int
    clock : {"wall", "thread"}
        "thread": only what the one computing thread took; see
        `stat_prune.measuring.latency.undisturbed_clock`.
    """

    speed_up: float
    low: float
    high: float
    dense_seconds: float
    pruned_seconds: float
    rounds: int
    clock: str


def compare(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    batch: Mapping[str, Tensor],
    *,
    precision: float = PRECISION,
) -> Comparison:
    """Time two models in turns until the ratio of their times is known.

    Parameters
    ----------
    dense, pruned : PreTrainedModel
        On the same device.
    batch : mapping of str to Tensor
    precision : float
        Relative standard error of the median ratio at which to stop.
    """
    clock = undisturbed_clock(dense.device)
    rounds: list[tuple[float, float]] = []
    with forward_turns([dense, pruned], batch, clock) as turns:
        while True:
            before, after = next(turns)
            rounds.append((before, after))
            if len(rounds) < MIN_ROUNDS:
                continue
            low, middle, high = statistics.quantiles([b / a for b, a in rounds], n=4)
            # Of a normal sample: the median's standard error is 1.25 sigma / sqrt(n), and the
            # quartiles are 1.35 sigma apart.
            error = 1.25 / 1.35 * (high - low) / len(rounds) ** 0.5
            spent = sum(map(sum, rounds))
            if error <= precision * middle or spent >= SECONDS or len(rounds) == MAX_ROUNDS:
                break
    return Comparison(
        speed_up=middle,
        low=low,
        high=high,
        dense_seconds=statistics.median(before for before, _ in rounds),
        pruned_seconds=statistics.median(after for _, after in rounds),
        rounds=len(rounds),
        clock="thread" if clock is time.thread_time else "wall",
    )


@dataclass(frozen=True)
class TimedModel:
    """A dense model, a batch to time it on, and what it is made of in terms of time.

    Attributes
    ----------
    dense : PreTrainedModel
        A copy that shares the model's tensors, so that the model itself may be cut.
    batch : dict of str to Tensor of shape (batch_size, seq_length), int64
    tables : dict of str to LatencyTable
        By the name of each block that may be cut.
    least : Comparison
        Of the model with the least of every such block, but not nothing of all.
    least_seconds : float
        What `cost` says that this model takes.
    round_to : int
        Multiples that numbers of neurons are kept to.
    """

    dense: PreTrainedModel
    batch: dict[str, Tensor]
    tables: dict[str, LatencyTable]
    least: Comparison
    least_seconds: float
    round_to: int

    def cost(self, block: Block, num_units: int, num_groups: int) -> float:
        """Seconds beyond those of the block's quickest size; 0 for a block that stays whole."""
        return _cost(self.tables, block, num_units, num_groups)

    def seconds_saved(
        self, block: Block, num_units: int, query_keys: Sequence[int], values: Sequence[int]
    ) -> Tensor:
        """Seconds that so many heads of a block take less with fewer dimensions.

        Returns
        -------
        Tensor of shape (len(query_keys), len(values)), float64
        """
        table = self.tables[block.name]
        return torch.from_numpy(table.seconds_saved(num_units, query_keys, values))

    def compare_sizes(self, sizes: Sequence[tuple[Block, int, int]]) -> Comparison:
        """Time a copy with blocks of these units and key/value heads."""
        return compare(self.dense, cut_copy(self.dense, sizes), self.batch)

    def compare_model(self, pruned: PreTrainedModel) -> Comparison:
        """Time a model, as precisely as sizes."""
        return compare(self.dense, pruned, self.batch)

    def compare(self, pruned: PreTrainedModel) -> Comparison:
        """Time what was made of the model, with twice the precision."""
        return compare(self.dense, pruned, self.batch, precision=PRECISION / 2)


def time_model(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    untouched: Sequence[Block],
    *,
    batch_size: int,
    seq_length: int,
    round_to: int,
    remove: bool = False,
    head_dims: bool = False,
) -> TimedModel:
    """Measure a latency table for each shape of layer, and the fastest that the model can be.

    Parameters
    ----------
    model : PreTrainedModel
    blocks, untouched : sequence of Block
        Those that may be cut, and those that stay whole.
    batch_size, seq_length : int
    round_to : int
        Multiples that numbers of neurons are kept to; 1 for `MULTIPLE`.
    remove : bool
        Whether blocks may leave altogether.
    head_dims : bool
        Whether dimensions inside heads may.
    """
    multiple = round_to if round_to > 1 else MULTIPLE
    dense = cut_copy(model, [])
    batch = _random_batch(dense, batch_size, seq_length)
    by_layer: dict[int, list[Block]] = {}
    for block in sorted([*blocks, *untouched], key=lambda block: block.kind):
        by_layer.setdefault(block.layer, []).append(block)
    tables: dict[str, LatencyTable] = {}
    for members in by_layer.values():
        if [block.kind for block in members] != ["heads", "neurons"]:
            raise TargetError(
                f"A time needs layers of one attention and one feed-forward network, but those of "
                f"{type(model).__name__} have {len(members)} blocks. Use MACs or Parameters."
            )
        heads, neurons = members
        narrowed = head_dims and heads in blocks
        multiples = multiples_of_dims(model, heads, round_to) if narrowed else None
        table = cached_table(
            {
                "device": device_name(dense.device),
                "threads": torch.get_num_threads(),
                "dtype": str(dense.dtype),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "model": type(dense.base_model).__name__,
                "attention": dense.config._attn_implementation,
                "batch": [batch_size, seq_length],
                "round_to": multiple,
                "remove": remove,
                "heads": _shape(heads),
                "neurons": _shape(neurons),
                **({} if multiples is None else {"dims": multiples}),
            },
            partial(
                measure_layer,
                dense,
                heads,
                neurons,
                batch,
                round_to=multiple,
                remove=remove,
                multiples=multiples,
            ),
        )
        tables |= {block.name: table for block in (heads, neurons) if block in blocks}
    sizes = _least_sizes(blocks, multiple, tables, remove)
    least = compare(dense, cut_copy(dense, sizes), batch, precision=2 * PRECISION)
    least_seconds = sum(_cost(tables, *size) for size in sizes)
    return TimedModel(dense, batch, tables, least, least_seconds, multiple)


def multiples_of_dims(model: PreTrainedModel, heads: Block, round_to: int) -> tuple[int, int]:
    """Of which numbers of query/key and of value dimensions are multiples where time counts.

    Parameters
    ----------
    model : PreTrainedModel
    heads : Block
        Of a family whose heads can be narrower.
    round_to : int
        1 for eighths of a head.
    """
    attention = attentions_of(model)[heads.part]
    sizes = heads.query_key_size, heads.unit_size
    query_key, value = (round_to if round_to > 1 else max(size // 8, 1) for size in sizes)
    query_key = math.lcm(query_key, attention.query_key_multiple)
    return (query_key if attention.own_dims == "all" else sizes[0]), value


def _cost(
    tables: Mapping[str, LatencyTable], block: Block, num_units: int, num_groups: int
) -> float:
    """Seconds beyond those of the block's quickest size; 0 without a table."""
    if block.name not in tables:
        return 0.0
    return tables[block.name].extra_seconds(block.kind, num_units, num_groups)


def device_name(device: torch.device) -> str:
    """What computes: the GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _shape(block: Block) -> list[Any]:
    sizes = (block.num_units, block.unit_size, block.num_groups)
    made = [
        [*one.parts, one.interleaved, one.bias, *([] if one.size is None else [one.size])]
        for one in block.producers
    ]
    return [*sizes, block.input_size, block.output_size, block.consumer_bias, block.fixed, made]


def _least_sizes(
    blocks: Sequence[Block], round_to: int, tables: Mapping[str, LatencyTable], remove: bool
) -> list[tuple[Block, int, int]]:
    """The fewest units of every block: none where that is allowed, but not of all blocks."""

    def least(block: Block, remove: bool) -> tuple[Block, int, int]:
        if block.kind == "heads":
            return block, *head_sizes(block, remove)[0]
        units = neuron_sizes(block, round_to, remove)[0]
        return block, units, units

    sizes = [least(block, remove) for block in blocks]
    if not any(units for _, units, _ in sizes):
        kept = [least(block, False) for block in blocks]
        cheapest = min(range(len(kept)), key=lambda number: _cost(tables, *kept[number]))
        sizes[cheapest] = kept[cheapest]
    return sizes


def _random_batch(model: PreTrainedModel, batch_size: int, seq_length: int) -> dict[str, Tensor]:
    """Token ids without padding; which ones they are changes no time."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(weight), (batch_size, seq_length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
