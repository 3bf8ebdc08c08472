"""How fast this machine does what pruning consists of, from a few seconds of measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch.nn.functional import linear

from stat_prune.choosing.correction import fold
from stat_prune.choosing.criteria import Candidates, candidates_for, criterion_of
from stat_prune.choosing.factored_block import FactoredBlock, is_factored
from stat_prune.linalg import Moments
from stat_prune.measuring.latency import take_turns
from stat_prune.measuring.statistics import BlockStatistics, quadratic
from stat_prune.model.blocks import Block
from stat_prune.model.tensors.half_products import fast_half_products
from stat_prune.settings.methods import Method

#: Sizes to measure at: enough for full speed, and quick. Larger ones are computed from these.
CHANNELS = 1536
ROWS = 2048
ROUNDS = 3


@dataclass(frozen=True)
class Rates:
    """Seconds.

    Attributes
    ----------
    forward : float
        For a multiply-accumulate of the model, in its dtype.
    moments : float
        For an entry of a Gram matrix and a row.
    """

    forward: float
    moments: float


def measure_rates(dtype: torch.dtype, device: torch.device, precision: str) -> Rates:
    """Time a linear layer and an update of `Moments`, on random numbers.

    Parameters
    ----------
    dtype : torch.dtype
        Of the model.
    device : torch.device
    precision : {"float64", "float32"}
        Of the products in the statistics.
    """
    rows = torch.ones(ROWS, CHANNELS, dtype=dtype, device=device).normal_()
    weight = torch.ones(2 * CHANNELS, CHANNELS, dtype=dtype, device=device).normal_()
    moments = Moments(CHANNELS, precision=precision, device=device)
    with fast_half_products([dtype]):
        forward = _seconds(lambda: linear(rows, weight), device)
    return Rates(
        forward=forward / (ROWS * weight.numel()),
        moments=_seconds(lambda: moments.update(rows), device) / (ROWS * CHANNELS**2),
    )


@dataclass(frozen=True)
class BlockSeconds:
    """Seconds for one block.

    Attributes
    ----------
    decompose : float
    fold : tuple of float
        The correction, at each of the fractions asked for.
    factor, trial : float
        Before the first candidate of a search is folded, and for each of them, at the last of the
        fractions.
    """

    decompose: float
    fold: tuple[float, ...]
    factor: float
    trial: float


def block_seconds(
    block: Block, recipe: Method, kept: Sequence[float], device: torch.device
) -> BlockSeconds:
    """Time a block of fewer units and narrower outputs; the cost is cubic in the size."""
    units = max(min(block.num_units, CHANNELS // block.unit_size), block.units_per_group)
    groups = max(units // block.units_per_group, 1)
    small = replace(
        block,
        num_units=groups * block.units_per_group,
        num_groups=groups,
        output_size=max(groups * block.output_size // block.num_groups, 1),
    )
    known = _random_statistics(small, device)
    growth = (block.num_channels / small.num_channels) ** 3

    def decompose() -> Candidates:
        return candidates_for(
            known,
            criterion_of(recipe),
            corrected=recipe.corrected,
            generator=torch.Generator(),
        )

    def fold_to(fraction: float) -> None:
        staying = max(round(fraction * groups), 1) * block.units_per_group
        fold(known, torch.arange(staying), corrected=recipe.corrected, output_error=0.0)

    def seconds(work: Callable[[], object]) -> float:
        return growth * _seconds(work, device)

    folding = tuple(seconds(partial(fold_to, fraction)) for fraction in kept)
    factor, trial = 0.0, folding[-1]
    if is_factored(block, recipe):
        candidates = decompose()
        factored = FactoredBlock(known, candidates)
        index = int((candidates.num_units - kept[-1] * small.num_units).abs().argmin())
        factor = seconds(lambda: FactoredBlock(known, candidates))
        trial = seconds(lambda: factored.fold(index))
    return BlockSeconds(seconds(decompose), folding, factor, trial)


def _random_statistics(block: Block, device: torch.device) -> BlockStatistics:
    m, generator = block.num_channels, torch.Generator().manual_seed(0)
    rows = torch.randn(2 * m, m, dtype=torch.float64, generator=generator)
    weight = torch.randn(block.output_size, m, dtype=torch.float64, generator=generator).to(device)
    gram = (rows.T @ rows).to(device)
    energy, output = float(gram.trace()), quadratic(gram, weight)
    return BlockStatistics(block, gram, None, weight, energy, output, 2 * m)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of a few rounds, after one that does not count."""
    turns = take_turns([work], device, time.perf_counter)
    return statistics.median(seconds for (seconds,) in islice(turns, ROUNDS))
