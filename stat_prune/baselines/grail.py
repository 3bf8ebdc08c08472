"""GRAIL: units by Wanda's score, and a ridge regression that makes up for the others.

Layer by layer from the bottom, in the model as pruned so far: the units of both sublayers are
scored, and ``G_PH`` and ``G_PP``, the Gram matrices of all channels and of those kept, give the map
``(G_PP + lambda I)^-1 G_PH`` that is merged into the consumer. Lambda is a thousandth of the mean
diagonal of ``G_PP``. The same fraction of every block is kept: of heads the nearest number, of
neurons what then fills the budget. The paper takes any selector; Wanda's is one of its own.

Departures. A key/value head leaves with its query heads, as the paper has no shared keys. A block
that loses nothing keeps its weight, which the ridge would shrink. The authors' code adds 1e-3 to
the mean diagonal, which depends on how activations are scaled: it is not done.

References
----------
.. [1] Tang, Wang, Thiele and Saukh, "GRAIL: Post-hoc Compensation by Linear Reconstruction for
   Compressed Networks", CPAL 2026, PMLR 328:881-895; code: github.com/TWWinde/GRAIL_Compensation.
.. [2] Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language
   Models", ICLR 2024 (arXiv:2306.11695), section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from stat_prune.baselines.layer_inputs import LayerwiseModel, mask_block
from stat_prune.baselines.ranking import even_counts
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.criteria.simple import wanda_sp
from stat_prune.choosing.plan import BlockPlan
from stat_prune.choosing.planned import plan_of
from stat_prune.families import transformer_layers
from stat_prune.linalg import least_squares_from_moments
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.collectors import MomentsCollector, collect_moments
from stat_prune.measuring.statistics import BlockStatistics, statistics_of
from stat_prune.model.running import evaluating
from stat_prune.pipeline.method_requirements import check_one_stack, single_fraction
from stat_prune.pipeline.run import Run
from stat_prune.settings.methods import Baseline

#: Of the mean diagonal of the kept channels' Gram matrix.
RIDGE = 1e-3


def plan(run: Run, budget: Budget) -> list[BlockPlan]:
    """Score, choose and compensate, one layer after another.

    Parameters
    ----------
    run : Run
    budget : Budget
        One fraction of MACs or parameters for heads and neurons together.

    Raises
    ------
    TargetError
        For a `Tolerance` or a fraction by kind, and where one unit of each block costs more.
    ModelError
        For models of several stacks of layers, with layers that share weights, or dispatched.
    """
    fraction = single_fraction(budget.target, "grail")
    check_one_stack(run, "grail")
    counts = even_counts(run.blocks, run.untouched, budget.cost, fraction, "grail")
    with run.stage("collect"):
        moments = collect_moments(run.model, run.blocks, run.tracked(run.calibration.batches))
    base = run.model.base_model
    dense = statistics_of(base, run.blocks, moments, absorb_mean=False)
    plans: dict[str, BlockPlan] = {}
    with evaluating(run.model), run.stage("score and compensate"):
        pruned = LayerwiseModel(
            copy.deepcopy(run.model).requires_grad_(False), run.calibration.batches
        )
        for layer in run.tracked(range(len(transformer_layers(run.model)))):
            if layer:
                pruned.advance()
            members = [one for one in dense if one.block.layer == layer]
            for one, seen in zip(members, _seen(run, pruned, members), strict=True):
                block = one.block
                units = _best(seen, counts[block.name])
                weight = _compensated(seen, units) if len(units) < block.num_units else None
                plans[block.name] = plan_of(one, units, weight)
                if weight is not None:
                    mask_block(pruned.model, block, units, weight)
    return [plans[block.name] for block in run.blocks]


def _seen(
    run: Run, pruned: LayerwiseModel, members: Sequence[BlockStatistics]
) -> list[BlockStatistics]:
    """Statistics of the blocks of the layer that comes next, in the model as pruned so far."""
    base, blocks = pruned.model.base_model, [one.block for one in members]
    with MomentsCollector(base, blocks, device=run.device) as collector:
        for position, batch in enumerate(pruned.batches):
            collector.expect(batch)
            pruned.run_layer(position)
    return statistics_of(base, blocks, collector.moments, absorb_mean=False)


def _best(statistics: BlockStatistics, count: int) -> Tensor:
    """The highest scores: units, ascending; of a key/value head its query heads."""
    block = statistics.block
    order = wanda_sp(statistics, block.num_channels // block.num_groups, torch.Generator()).order
    return block.units_at(order[:count]).sort().values


def _compensated(statistics: BlockStatistics, units: Tensor) -> Tensor:
    """The consumer's weight that reads the kept channels alone; (d, k), float64."""
    gram = statistics.gram
    kept = statistics.block.channels(units.to(gram.device))
    system = gram[kept[:, None], kept]
    system.diagonal().add_(RIDGE * float(system.diagonal().mean()))
    with gathered_numerical_warnings("compensating a block"):
        return least_squares_from_moments(system, gram[kept] @ statistics.weight.T).T


GRAIL = Baseline("grail", plan)
