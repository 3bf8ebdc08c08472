"""What timing a model takes, for targets that speak of time."""

from __future__ import annotations

from collections.abc import Sequence

from stat_prune.measuring import latency_table, timing
from stat_prune.measuring.latency_table import head_sizes, neuron_sizes
from stat_prune.model.blocks import Block
from stat_prune.pipeline.foreseeing.rates import Rates
from stat_prune.pipeline.run import Run
from stat_prune.settings.targets import Latency


def timing_seconds(run: Run, target: Latency, rates: Rates) -> float:
    """For a latency table of each shape of layer, and for the result beside the dense model.

    No table is taken to be known from before.
    """
    tokens = target.seq_length or round(run.calibration.mean_length)
    forward = target.batch_size * rates.forward
    blocks = [*run.blocks, *run.untouched]
    whole = sum(block.macs(block.num_units, block.num_groups, tokens) for block in blocks)
    seconds = _until(2 * whole * forward, timing.SECONDS, (timing.MIN_ROUNDS, timing.MAX_ROUNDS))
    tables = {_shape(block): _macs_of_sizes(run, block, tokens) for block in blocks}
    rounds = (latency_table.MIN_ROUNDS, latency_table.MAX_ROUNDS)
    # Heads and neurons are timed together.
    seconds += _until(sum(tables.values()) * forward, latency_table.SECONDS, rounds)
    return seconds


def _until(one_round: float, seconds: float, rounds: Sequence[int]) -> float:
    """Of rounds that end after some time, but neither before nor after so many of them."""
    least, most = rounds
    return min(max(seconds, least * one_round), most * one_round)


def _shape(block: Block) -> tuple[int, ...]:
    return (block.num_units, block.unit_size, block.num_groups, block.output_size)


def _macs_of_sizes(run: Run, block: Block, tokens: float) -> float:
    """Of a block at each size that is timed."""
    settings = run.settings
    if block.kind == "heads":
        sizes = head_sizes(block, settings.removes_blocks)
    else:
        multiple = settings.round_to if settings.round_to > 1 else timing.MULTIPLE
        sizes = [(n, n) for n in neuron_sizes(block, multiple, settings.removes_blocks)]
    return sum(block.macs(units, groups, tokens) for units, groups in sizes)
