"""The recipe of STAT's authors ("STAT: Shrinking Transformers After Training", 2024).

Kept apart from the default method so that the paper can be reproduced. It differs in that nothing
is centred, heads are chosen on tall columns without regard to the consumer, one threshold over all
layers takes the place of probes, and the heads' activations are collected again once the
feed-forward networks are pruned. On decoders all statistics come from Gaussian sketches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.baselines.ranking import budget_of, pairs_within, ranked_by_kind
from stat_prune.choosing.budget.costs import Budget, CostFunction, full_cost
from stat_prune.choosing.correction import activation_error, fold
from stat_prune.choosing.plan import BlockPlan
from stat_prune.errors import TargetError
from stat_prune.families import architecture_of
from stat_prune.linalg import GaussianSketch, pivoted_cholesky
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.statistics import BlockStatistics, statistics_of
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import to_cut
from stat_prune.pipeline.method_requirements import single_fraction
from stat_prune.pipeline.run import Run
from stat_prune.settings.methods import Baseline
from stat_prune.surgery.cut import apply

#: Rows of the Gaussian sketch of each decoder sequence (the paper's Llama-2 setting).
SKETCH_ROWS = 100


@dataclass(frozen=True)
class _Pivots:
    """Units (key/value groups with their heads) of a block in pivot order, with ``|diag R|``."""

    block: Block
    order: Tensor
    diagonal: Tensor

    def units(self, count: int) -> Tensor:
        units: Tensor = self.block.units_at(self.order[:count]).sort().values
        return units


def plan(run: Run, budget: Budget) -> list[BlockPlan]:
    """Choose and fold by the authors' recipe.

    Parameters
    ----------
    run : Run
    budget : Budget
        One fraction of MACs or parameters for heads and neurons together.

    Raises
    ------
    TargetError
        For a `Tolerance` or a fraction by kind, which the recipe does not have.
    """
    fraction = single_fraction(budget.target, "stat-paper")
    cost = budget.cost
    with run.stage("collect"):
        dense = _statistics(run, run.model, run.blocks)
    with run.stage("decompose"):
        pivots = [_pivots(one, run.blocks) for one in run.tracked(dense)]
    counts = _counts(pivots, run.untouched, cost, fraction)
    plans = {
        one.block.name: _block_plan(one, chosen.units(counts[one.block.name]))
        for one, chosen in zip(dense, pivots, strict=True)
        if one.block.kind == "neurons"
    }
    with to_cut(run.model) as halfway:
        apply(halfway, [neurons.folded for neurons in plans.values()])
    heads = [block for block in run.blocks if block.kind == "heads"]
    with run.stage("collect heads again"):
        recollected = _statistics(run, halfway, heads)
    for one in recollected:
        chosen = _pivots(one, run.blocks)
        plans[one.block.name] = _block_plan(one, chosen.units(counts[one.block.name]))
    return [plans[block.name] for block in run.blocks]


def _statistics(run: Run, model: PreTrainedModel, blocks: Sequence[Block]) -> list[BlockStatistics]:
    causal = architecture_of(model).causal
    transform = _gaussian_sketch(run.settings.seed) if causal else None
    moments = collect_moments(
        model, blocks, run.tracked(run.calibration.batches), transform=transform
    )
    return statistics_of(model.base_model, blocks, moments, absorb_mean=False)


def _pivots(statistics: BlockStatistics, blocks: Sequence[Block]) -> _Pivots:
    """Column-pivoted QR by the Gram matrix, with the layer's scale on ``|diag R|``.

    Neurons are columns scaled by the norm of what reads them; heads are tall columns of
    tokens times head size, whose Gram matrix sums over the positions within a head.
    """
    block, gram = statistics.block, statistics.gram
    num_layers = 1 + max(one.layer for one in blocks)
    scale = (num_layers - block.layer) ** 0.5 + 1  # sqrt(L - l + 1) + 1 with l from 1
    if block.kind == "neurons":
        norms = statistics.weight.norm(dim=0)
        factored = pivoted_cholesky(norms[:, None] * gram * norms)
    else:
        size = block.num_channels // block.num_groups
        tall = gram.reshape(block.num_groups, size, block.num_groups, size)
        factored = pivoted_cholesky(tall.diagonal(dim1=1, dim2=3).sum(-1))
    diagonal = torch.zeros(block.num_groups, dtype=torch.float64)
    pivots = factored.order[: factored.rank]
    diagonal[: factored.rank] = factored.factor[pivots].diagonal().abs().cpu()
    return _Pivots(block, factored.order.cpu(), scale * diagonal)


def _gaussian_sketch(seed: int) -> Callable[[Tensor], Tensor]:
    """A fresh Gaussian projection to `SKETCH_ROWS` rows for each sequence and block."""
    seeds = np.random.default_rng(seed)

    def sketch(rows: Tensor) -> Tensor:
        fresh = GaussianSketch(rows.shape[1], SKETCH_ROWS, seed=int(seeds.integers(2**63)))
        return fresh.update(rows).matrix

    return sketch


def _block_plan(statistics: BlockStatistics, units: Tensor) -> BlockPlan:
    folded = fold(statistics, units)
    return BlockPlan(folded=folded, activation_error=activation_error(statistics, units))


def _counts(
    pivots: Sequence[_Pivots], untouched: Sequence[Block], cost: CostFunction, fraction: float
) -> dict[str, int]:
    """Units to keep in each block, under one threshold for heads and one for neurons.

    The number of heads is the one at which the first head cut has about twice the scaled residual
    of the first neuron cut, given that neurons fill the rest of the budget.

    Raises
    ------
    TargetError
        Where one key/value head with all that share it, and one neuron, cost more in every layer.
    """
    budget = budget_of([one.block for one in pivots], untouched, fraction, cost)
    orders = {one.block.name: one.order for one in pivots}
    scores = {one.block.name: one.diagonal[one.order.argsort()] for one in pivots}
    heads, neurons = ranked_by_kind([one.block for one in pivots], scores, cost, orders)
    least = float(heads.costs[0] + neurons.costs[0])
    if least > budget * (1 + 1e-12):
        total = sum(
            full_cost(block, cost) for block in [*(one.block for one in pivots), *untouched]
        )
        raise TargetError(
            f"A kept fraction of {fraction:g} is below the least that 'stat-paper' can reach, "
            f"{(total * fraction - budget + least) / total:.4g} of the whole: it removes key/value "
            "heads with all queries that share them. Ask for more, or use method='stat'."
        )
    best, least_imbalance = (0, 0), float("inf")
    for kept_heads, kept_neurons in pairs_within(heads, neurons, budget):
        imbalance = abs(heads.cutoff(kept_heads) - 2 * neurons.cutoff(kept_neurons))
        if imbalance <= least_imbalance:
            best, least_imbalance = (kept_heads, kept_neurons), imbalance
    return {**heads.counts(best[0]), **neurons.counts(best[1])}


STAT_PAPER = Baseline("stat-paper", plan)
