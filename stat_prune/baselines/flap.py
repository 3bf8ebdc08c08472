"""FLAP ("Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024).

An et al., arXiv:2312.11983, with the metric WIFV and the structure AL-AM, the paper's choice: one
threshold on standardised scores over all layers, heads and neurons. What is removed is replaced by
its mean, in a bias that the consumer is given if it has none.

Departures. The paper has no shared keys: here a key/value head leaves with its query heads. Units
are taken in the order of their scores as long as they fit, which is the paper's threshold up to
the last few units, and one unit of each block stays. The authors' code squares the scores of
attention channels before it standardises them, of which the paper says nothing: it is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stat_prune.baselines.ranking import budget_of, cost_of
from stat_prune.choosing.budget.costs import Budget, CostFunction
from stat_prune.choosing.budget.filling import filled
from stat_prune.choosing.plan import BlockPlan, Sizes
from stat_prune.choosing.planned import relative_error
from stat_prune.errors import TargetError
from stat_prune.linalg import Moments
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.statistics import complement, quadratic
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import loaded
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.pipeline.run import Run
from stat_prune.settings.methods import Baseline


@dataclass(frozen=True)
class _Fluctuation:
    """What FLAP knows of a block.

    Attributes
    ----------
    block : Block
    moments : Moments
        Of the consumer's input.
    weight : Tensor of shape (d, m), float64
        The consumer's.
    channels : Tensor of shape (m,), float64
        Standardised score of each channel.
    scores : Tensor of shape (g,), float64
        Standardised score of each key/value head (with its query heads) or neuron.
    """

    block: Block
    moments: Moments
    weight: Tensor
    channels: Tensor
    scores: Tensor

    @classmethod
    def of(cls, block: Block, moments: Moments, weight: Tensor) -> _Fluctuation:
        """Variance of each channel times the squared norm of the weights that read it."""
        variance = moments.scatter.diagonal() / max(moments.count - 1, 1)
        channels = variance * weight.square().sum(0)
        deviation = channels.std()
        standardised = (channels - channels.mean()) / torch.where(deviation > 0, deviation, 1.0)
        scores = standardised.reshape(block.num_groups, -1).mean(1).cpu()
        return cls(block, moments, weight, standardised.cpu(), scores)

    def cost(self, count: int, cost: CostFunction) -> float:
        """Cost of so many key/value heads or neurons; of a bias too, where one has to be added."""
        block = self.block
        if count < block.num_groups:
            block = replace(block, consumer_bias=True)
        return cost_of(block, count, cost)

    def best(self, num_units: int, num_groups: int) -> Tensor:
        """The best key/value heads, and of each as many of its best query heads; or neurons."""
        groups = self.scores.argsort(descending=True, stable=True)[:num_groups].sort().values
        members = self.channels.reshape(self.block.num_groups, self.block.units_per_group, -1)
        order = members.mean(2)[groups].argsort(dim=1, descending=True, stable=True)
        kept = order[:, : num_units // num_groups].sort(1).values
        return (groups[:, None] * self.block.units_per_group + kept).reshape(-1)

    def plan(self, units: Tensor) -> BlockPlan:
        """Keep these query heads or neurons, and the mean of the others."""
        block, moments = self.block, self.moments
        kept = block.channels(units.to(self.weight.device))
        dropped = complement(kept, block.num_channels)
        scatter = moments.scatter[dropped][:, dropped]
        gram = moments.gram
        return BlockPlan(
            folded=FoldedConsumer(
                block=block,
                units=units,
                weight=self.weight[:, kept],
                bias=self.weight[:, dropped] @ moments.mean[dropped] if len(dropped) else None,
                output_error=relative_error(
                    quadratic(scatter, self.weight[:, dropped]), quadratic(gram, self.weight)
                ),
            ),
            activation_error=relative_error(float(scatter.trace()), float(gram.trace())),
        )


def plan(run: Run, budget: Budget, search: Callable[[], Sizes] | None = None) -> list[BlockPlan]:
    """Choose by fluctuation, and compensate with biases.

    Parameters
    ----------
    run : Run
    budget : Budget
        Of MACs or parameters.
    search : callable, optional
        What finds how many units and key/value heads each block keeps, in place of one threshold;
        of a key/value head its best query heads stay then.

    Raises
    ------
    TargetError
        For a `Tolerance`, which FLAP does not have.
    """
    target = budget.target
    if target.bounds_error:
        raise TargetError(
            f"method='flap' takes a fraction to keep, got {target!r}. Use method='stat' for "
            "tolerances."
        )
    cost = budget.cost
    sizes = None if search is None else search()
    with run.stage("collect"):
        moments = collect_moments(run.model, run.blocks, run.tracked(run.calibration.batches))
    with run.stage("score and compensate"):
        measured = []
        for block in run.blocks:
            with loaded(run.model.base_model, block.consumer) as consumer:
                weight = consumer.weight.detach().double()
            measured.append(_Fluctuation.of(block, moments[block.name], weight))
        if sizes is not None:
            return [one.plan(one.best(*sizes[one.block.name])) for one in measured]
        kept = {one.block.name: torch.arange(one.block.num_groups) for one in measured}
        for members, fraction in target.budgets([*run.blocks, *run.untouched]):
            part = [one for one in measured if one.block in members]
            whole = [block for block in run.untouched if block in members]
            allowed = budget_of([one.block for one in part], whole, fraction, cost)
            for one, groups in zip(part, _search(part, cost, allowed), strict=True):
                kept[one.block.name] = groups
        return [one.plan(one.block.units_at(kept[one.block.name])) for one in measured]


def _search(part: Sequence[_Fluctuation], cost: CostFunction, budget: float) -> list[Tensor]:
    """The highest scores over all blocks that fit into the budget; groups by block, ascending."""
    owners = torch.cat([torch.full((len(one.scores),), i) for i, one in enumerate(part)])
    groups = torch.cat([torch.arange(len(one.scores)) for one in part])
    order = torch.cat([one.scores for one in part]).argsort(descending=True, stable=True)
    return filled(
        zip(owners[order].tolist(), groups[order].tolist(), strict=True),
        [[int(one.scores.argmax())] for one in part],
        lambda owner, count: part[owner].cost(count + 1, cost) - part[owner].cost(count, cost),
        budget * (1 + 1e-12) - sum(one.cost(1, cost) for one in part),
    )


FLAP = Baseline("flap", plan, takes_sizes=True)
