"""KCM: kernelized convex masking of feed-forward networks (Nova et al. 2023); label-free.

A neuron is a point: the row of the second layer's weight that it is multiplied with. Representative
ranking (R2) approximates the convex hull of a layer's points in the feature space of a Gaussian
kernel; data-driven ranking (D2) looks at the neurons' activations on unlabelled data. Neurons of
all layers are kept by the product of both, and scaled by least squares to make up for those that
left. Heads all stay: neurons bear the whole budget.

There is no published code. The paper's abstract and its author's talk say as much as the above, and
no more than that is followed: no labels, no gradients, feed-forward networks alone, a kernelized
approximation of the convex hull, both rankings merged into one order, scaling at the end. As in a
public reimplementation (github.com/wazenmai/retraining-free-pruning) are the points, the kernel and
its width, the updates and where they stop, one threshold for all layers, and the product of R2,
scaled to [0, 1] within each layer, and D2, of mean 0 and deviation 1 there. (With D2 in [0, 1] too,
accuracy on train sequences of SST-2 that calibration had not seen was .858 at 0.6 of the MACs, and
.924 so.) Determined by neither: D2 is the norm of a neuron's activations over all tokens, so that
batches play no part; the scaling is Kwon et al.'s tuning of masks [3]_, of neurons alone; one
neuron of each layer stays.

References
----------
.. [1] Nova, Dai and Schuurmans, "Gradient-Free Structured Pruning with Unlabeled Data", ICML 2023
   (arXiv:2303.04185).
.. [2] Huang, Wu, Min and Ying, "Kernelized Convex Hull Approximation and its Applications in Data
   Description Tasks", IJCNN 2018.
.. [3] Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022
   (arXiv:2204.09656).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from stat_prune.baselines.mask_tuning import dense_statistics, tuned_plans
from stat_prune.baselines.ranking import RankedUnits, budget_of
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.plan import BlockPlan
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.running import evaluating
from stat_prune.pipeline.method_requirements import check_encoder, single_fraction
from stat_prune.pipeline.run import Run
from stat_prune.settings.methods import Baseline

#: Of the Gaussian kernel, sigma.
WIDTH = 1.0
#: Relative change of the sum of the coefficients at which their updates stop, alpha.
CONVERGENCE = 0.01


def plan(run: Run, budget: Budget) -> list[BlockPlan]:
    """Rank neurons, then tune the masks of those that stay.

    Parameters
    ----------
    run : Run
        Whose heads are left alone.
    budget : Budget
        One fraction of MACs or parameters for heads and neurons together.

    Raises
    ------
    TargetError
        For a `Tolerance` or a fraction by kind.
    ModelError
        For decoders.
    """
    return _plan(run, budget, "kcm", tuned=True)


def plan_untuned(run: Run, budget: Budget) -> list[BlockPlan]:
    """`plan` without the tuning of masks."""
    return _plan(run, budget, "kcm-untuned", tuned=False)


def _plan(run: Run, budget: Budget, method: str, *, tuned: bool) -> list[BlockPlan]:
    fraction = single_fraction(budget.target, method)
    check_encoder(run, method)
    cost = budget.cost
    with evaluating(run.model):
        statistics = dense_statistics(run)
        with run.stage("rank"):
            scores = {one.block.name: _score(one) for one in run.tracked(statistics)}
            ranking = RankedUnits(run.blocks, scores, cost)
            allowed = budget_of(run.blocks, run.untouched, fraction, cost)
            kept = ranking.units(ranking.most_within(allowed))
        return tuned_plans(run, statistics, kept, copy.deepcopy(run.model) if tuned else None)


def _score(statistics: BlockStatistics) -> Tensor:
    """R2 between 0 and 1, times D2 standardised; (m,)."""
    representative = representative_scores(statistics.weight)
    low, high = representative.aminmax()
    norms = statistics.gram.diagonal().clamp_min(0).sqrt()
    return _ratio(representative - low, high - low) * _ratio(norms - norms.mean(), norms.std())


def representative_scores(weight: Tensor) -> Tensor:
    """How much each neuron is needed to represent itself: R2.

    With ``K`` the kernel matrix of the points, coefficients ``C >= 0`` that lessen
    ``trace((I - C)^T K (I - C))``, the squared distance of all points in feature space from what
    they are represented by, are found by ``C_ij <- C_ij sqrt(K_ij / (K C)_ij)`` from ``1 / m`` on.
    A point amid others shares its coefficient with them.

    Parameters
    ----------
    weight : Tensor of shape (d, m), float64
        The consumer's: a column for each neuron.

    Returns
    -------
    Tensor of shape (m,), float64
        The diagonal of C, where the updates stop.
    """
    kernel = torch.cdist(weight.T, weight.T).square_().div_(-(WIDTH**2)).exp_()
    coefficients = torch.full_like(kernel, 1 / len(kernel))
    total, change = float(coefficients.sum()), 1.0
    smallest = torch.finfo(kernel.dtype).tiny  # where the kernel vanishes, 0 / 0 is 0
    while change >= CONVERGENCE:
        coefficients *= (kernel / (kernel @ coefficients).clamp_min_(smallest)).sqrt_()
        before, total = total, float(coefficients.sum())
        change = abs(total - before) / before
    return coefficients.diagonal()


def _ratio(values: Tensor, scale: Tensor) -> Tensor:
    """Of a layer's scores and their spread; all 0 where there is none."""
    return values / scale if scale > 0 else torch.zeros_like(values)


KCM = Baseline("kcm", plan, leaves_heads=True)
UNTUNED = Baseline("kcm-untuned", plan_untuned, leaves_heads=True)
