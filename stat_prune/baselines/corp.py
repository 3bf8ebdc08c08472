"""CORP: channels by energy and activity, and an affine map that makes up for the others.

A neuron's score is ``E[x^2] P(|x| > eps)``, with eps a hundredth of its block's root mean square;
a head's the same of the squared norm of its output. What leaves of the neurons is foretold from
what stays by ridge regression, ``x_P = B x_S + c`` with
``B = Sigma_PS (Sigma_SS + lambda I)^-1``, and folded into the consumer:
``W_S + W_P B`` and a bias ``W_P c``. Lambda is that of oracle approximating shrinkage [2]_, and
1e-3 at least. Heads leave without compensation. All statistics are of the dense model, and the same
fraction of every block is kept: of heads the nearest number, of neurons what then fills the budget.

This is what the authors' code does to decoders (OPT) as published, with its defaults. Their other
mode, for vision transformers, keeps all heads and takes dimensions of queries and keys.

Departures. A key/value head leaves with its query heads, as OPT has no shared keys. Of the paper
only the abstract was read.

References
----------
.. [1] Zhang and Yang, "CORP: Closed-Form One-shot Representation-Preserving Structured Pruning for
   Vision Transformers", 2026 (arXiv:2602.05243); code: github.com/BOX-LEO/CORP.
.. [2] Chen, Wiesel, Eldar and Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE
   Transactions on Signal Processing 58(10), 2010, equation 23.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stat_prune.baselines.ranking import even_counts
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.plan import BlockPlan
from stat_prune.choosing.planned import relative_error
from stat_prune.data.batching import token_mask
from stat_prune.linalg import Moments, least_squares_from_moments
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.collectors import collect_moments, token_rows
from stat_prune.measuring.statistics import complement, quadratic
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import loaded
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.model.running import evaluating, model_inputs
from stat_prune.pipeline.method_requirements import single_fraction
from stat_prune.pipeline.run import Run
from stat_prune.settings.methods import Baseline

#: Of the root mean square of a block's channels: below it they count as inactive.
INACTIVE = 0.01

#: The least lambda.
LEAST_RIDGE = 1e-3


def plan(run: Run, budget: Budget) -> list[BlockPlan]:
    """Score, choose and compensate.

    Parameters
    ----------
    run : Run
    budget : Budget
        One fraction of MACs or parameters for heads and neurons together.

    Raises
    ------
    TargetError
        For a `Tolerance` or a fraction by kind, and where one unit of each block costs more.
    """
    fraction = single_fraction(budget.target, "corp")
    # A consumer without a bias is given one.
    priced = [
        replace(block, consumer_bias=True) if block.kind == "neurons" and fraction < 1 else block
        for block in run.blocks
    ]
    counts = even_counts(priced, run.untouched, budget.cost, fraction, "corp")
    with run.stage("collect"):
        moments = collect_moments(run.model, run.blocks, run.tracked(run.calibration.batches))
    with run.stage("score and compensate"):
        energies = _means(run, lambda _block, units: units.square())
        least = {name: INACTIVE * float(one.mean().sqrt()) for name, one in energies.items()}
        rates = _means(run, lambda block, units: units.abs() > least[block.name])
        plans = []
        for block in run.blocks:
            order = (energies[block.name] * rates[block.name]).argsort(descending=True, stable=True)
            kept = order[: counts[block.name]].sort().values.cpu()
            with loaded(run.model.base_model, block.consumer) as consumer:
                weight = consumer.weight.detach().double()
            plans.append(_planned(block, moments[block.name], weight, block.units_at(kept)))
        return plans


def _means(run: Run, of: Callable[[Block, Tensor], Tensor]) -> dict[str, Tensor]:
    """Means over tokens of a function of each neuron, or of each head's squared norm.

    Returns
    -------
    dict of str to Tensor of shape (g,), float64
        Of key/value heads with their query heads or of neurons, by block name.
    """
    base = run.model.base_model
    sums: dict[str, Tensor] = {}
    rows_seen: dict[str, int] = {}
    batch: dict[str, Any] = {}

    def see(block: Block, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        mask = token_mask(batch, block.mask).to(args[0].device)
        rows = token_rows(args[0], mask).double()
        if block.kind == "heads":
            rows = rows.square().unflatten(1, (block.num_groups, -1)).sum(2)
        found = of(block, rows).double().sum(0)
        sums[block.name] = sums.get(block.name, 0) + found
        rows_seen[block.name] = rows_seen.get(block.name, 0) + len(rows)

    with evaluating(run.model), ExitStack() as hooks:
        for block in run.blocks:
            consumer = projection(base, block.consumer).module
            hooks.enter_context(consumer.register_forward_pre_hook(partial(see, block)))
        for one in run.tracked(run.calibration.batches):
            batch = dict(one)
            base(**model_inputs(base, one, run.device))
    return {name: total / max(rows_seen[name], 1) for name, total in sums.items()}


def _planned(block: Block, moments: Moments, weight: Tensor, units: Tensor) -> BlockPlan:
    """The columns that stay; of neurons with what foretells the others, and a bias."""
    kept = block.channels(units.to(weight.device))
    gone = complement(kept, block.num_channels)
    made, bias, second = weight[:, kept], None, moments.gram
    lost = weight.new_zeros(len(gone), block.num_channels)  # of channels that leave
    lost[torch.arange(len(gone)), gone] = 1
    if block.kind == "neurons" and len(gone):
        second = moments.scatter
        foretold = _foretelling(second, kept, gone, moments.count)
        lost[:, kept] = -foretold
        made = made + weight[:, gone] @ foretold
        bias = weight[:, gone] @ (lost @ moments.mean)
    dense = moments.gram
    return BlockPlan(
        folded=FoldedConsumer(
            block=block,
            units=units,
            weight=made,
            bias=bias,
            output_error=relative_error(
                quadratic(second, weight[:, gone] @ lost), quadratic(dense, weight)
            ),
        ),
        activation_error=relative_error(quadratic(second, lost), float(dense.trace())),
    )


def _foretelling(scatter: Tensor, kept: Tensor, gone: Tensor, count: int) -> Tensor:
    """The map B from channels that stay to those that leave; (gone, kept), float64."""
    covariance = scatter[kept[:, None], kept] / max(count, 1)
    size = len(kept)
    trace, squares = float(covariance.trace()), float(covariance.square().sum())
    over = (count + 1 - 2 / size) * (squares - trace**2 / size)
    shrinkage = min(((1 - 2 / size) * squares + trace**2) / over, 1.0) if over > 0 else 1.0
    covariance.diagonal().add_(max(LEAST_RIDGE, shrinkage * trace / size))
    with gathered_numerical_warnings("compensating a block"):
        cross = scatter[kept[:, None], gone] / max(count, 1)
        return least_squares_from_moments(covariance, cross).T


CORP = Baseline("corp", plan)
