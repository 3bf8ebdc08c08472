"""Units of several blocks in one order, and what keeping the first of them costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from stat_prune.choosing.budget.costs import CostFunction, full_cost
from stat_prune.errors import TargetError
from stat_prune.model.blocks import Block


class RankedUnits:
    """The best unit of every block, which always stays, and all others, best first.

    A unit is a neuron, or a key/value head with all query heads that read it. The papers let a
    block lose all of its units; here one stays, because a layer without heads or neurons is no
    longer a model that transformers can run.

    Parameters
    ----------
    blocks : sequence of Block
    scores : mapping of str to Tensor of shape (u,)
        By block name; higher is better, and comparable between blocks.
    cost : callable
    orders : mapping of str to Tensor of shape (u,), int64, optional
        Units of each block, best first, in which scores do not rise. Default: by the scores.

    Attributes
    ----------
    scores : Tensor of shape (n,), float64
        Of the units that may leave, descending.
    costs : Tensor of shape (n + 1,), float64
        Of all blocks together if the first 0..n of those units stay.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        scores: Mapping[str, Tensor],
        cost: CostFunction,
        orders: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._blocks = blocks
        self._orders: list[Tensor] = []
        values, owners, steps = [], [], []
        for index, block in enumerate(blocks):
            own = scores[block.name].double().cpu()
            order = orders[block.name] if orders else own.argsort(descending=True, stable=True)
            self._orders.append(order)
            values.append(own[order[1:]])
            owners.append(torch.full((len(order) - 1,), index))
            steps.append(unit_cost(block, cost))
        none = torch.empty(0, dtype=torch.float64)
        self.scores, by_score = torch.cat([none, *values]).sort(descending=True, stable=True)
        self._owners = torch.cat([none.long(), *owners])[by_score]
        added = torch.tensor(steps, dtype=torch.float64)[self._owners].cumsum(0)
        least = sum(cost_of(block, 1, cost) for block in blocks)
        self.costs = least + torch.cat([added.new_zeros(1), added])

    def most_within(self, budget: float) -> int:
        """How many units beyond one a block a budget pays for; -1 if not even those."""
        allowed = budget * (1 + 1e-12)  # sums of costs are rounded
        return int(torch.searchsorted(self.costs, allowed, right=True)) - 1

    def cutoff(self, count: int) -> float:
        """The score of the first unit that leaves if the first `count` stay; 0 if none does."""
        return float(self.scores[count]) if count < len(self.scores) else 0.0

    def counts(self, count: int) -> dict[str, int]:
        """How many units of each block stay if the first `count` do, by block name."""
        sizes = 1 + torch.bincount(self._owners[:count], minlength=len(self._blocks))
        names = [block.name for block in self._blocks]
        return dict(zip(names, sizes.tolist(), strict=True))

    def units(self, count: int) -> dict[str, Tensor]:
        """What stays if the first `count` units do: ascending indices, int64, by block name.

        Of a key/value head those of its query heads.
        """
        counts = self.counts(count)
        return {
            block.name: block.units_at(order[: counts[block.name]]).sort().values
            for block, order in zip(self._blocks, self._orders, strict=True)
        }


def ranked_by_kind(
    blocks: Sequence[Block],
    scores: Mapping[str, Tensor],
    cost: CostFunction,
    orders: Mapping[str, Tensor] | None = None,
) -> tuple[RankedUnits, RankedUnits]:
    """Heads and neurons, each in an order of their own; arguments as for `RankedUnits`."""
    heads, neurons = (
        RankedUnits([block for block in blocks if block.kind == kind], scores, cost, orders)
        for kind in ("heads", "neurons")
    )
    return heads, neurons


def pairs_within(
    heads: RankedUnits, neurons: RankedUnits, budget: float
) -> Iterator[tuple[int, int]]:
    """For every number of heads that a budget pays for, the most neurons beside them.

    Both beyond one a block, as in `RankedUnits.most_within`.
    """
    for num_heads, spent in enumerate(heads.costs.tolist()):
        num_neurons = neurons.most_within(budget - spent)
        if num_neurons < 0:
            return
        yield num_heads, num_neurons


def cost_of(block: Block, count: int, cost: CostFunction) -> float:
    """What so many key/value heads with all their query heads, or neurons, cost."""
    return cost(block, count * block.units_per_group, count)


def unit_cost(block: Block, cost: CostFunction) -> float:
    """What one more of these costs."""
    return cost_of(block, 2, cost) - cost_of(block, 1, cost)


def budget_of(
    blocks: Sequence[Block], untouched: Sequence[Block], fraction: float, cost: CostFunction
) -> float:
    """What `blocks` may cost together if all blocks keep a fraction and `untouched` are whole."""

    def total(some: Sequence[Block]) -> float:
        return sum(full_cost(block, cost) for block in some)

    return fraction * total([*blocks, *untouched]) - total(untouched)


def even_counts(
    blocks: Sequence[Block],
    untouched: Sequence[Block],
    cost: CostFunction,
    fraction: float,
    method: str,
) -> dict[str, int]:
    """Key/value heads or neurons of each block, by its name: the same fraction everywhere.

    Of heads the nearest number, one at least; of neurons what then fills the budget.

    Raises
    ------
    TargetError
        Where that costs more than the fraction.
    """
    budget = budget_of(blocks, untouched, fraction, cost) * (1 + 1e-12)  # sums are rounded
    kept = budget / sum(full_cost(block, cost) for block in blocks)
    heads = [block for block in blocks if block.kind == "heads"]
    neurons = [block for block in blocks if block.kind == "neurons"]
    counts = {block.name: max(round(kept * block.num_groups), 1) for block in heads}
    left = budget - sum(cost_of(block, counts[block.name], cost) for block in heads)
    left -= sum(cost_of(block, 1, cost) for block in neurons)
    if left < 0:
        raise TargetError(
            f"method={method!r} keeps the same fraction of all heads and at least one unit of each "
            f"block, which costs more than {fraction:g}. Ask for more, or use method='stat'."
        )
    beyond = {block.name: (block.num_groups - 1) * unit_cost(block, cost) for block in neurons}
    share = min(left / max(sum(beyond.values()), 1e-300), 1.0)
    for block in neurons:
        counts[block.name] = 1 + int(share * (block.num_groups - 1) + 1e-9)
        left -= (counts[block.name] - 1) * unit_cost(block, cost)
    for block in neurons:  # what rounding down has left
        if counts[block.name] < block.num_groups and unit_cost(block, cost) <= left:
            counts[block.name] += 1
            left -= unit_cost(block, cost)
    return counts
