"""Units of several blocks in one order, and what keeping the first of them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stat_prune.choosing.budget.costs import CostFunction, full_cost
from stat_prune.model.blocks import Block


class Ranking:
    """The best unit of every block, which always stays, and all others, best first.

    The papers let a block lose all of its units; here one stays, because a layer without heads or
    neurons is no longer a model that transformers can run.

    Parameters
    ----------
    blocks : sequence of Block
    scores : mapping of str to Tensor of shape (u,)
        By block name; higher is better, and comparable between blocks.
    cost : callable

    Attributes
    ----------
    scores : Tensor of shape (n,), float64
        Of the units that may leave, descending.
    costs : Tensor of shape (n + 1,), float64
        Of all blocks together if the first 0..n of those units stay.
    """

    def __init__(
        self, blocks: Sequence[Block], scores: Mapping[str, Tensor], cost: CostFunction
    ) -> None:
        self._blocks = blocks
        self._orders = [
            scores[block.name].double().cpu().argsort(descending=True, stable=True)
            for block in blocks
        ]
        values, owners, steps = [], [], []
        for index, (block, order) in enumerate(zip(blocks, self._orders, strict=True)):
            values.append(scores[block.name].double().cpu()[order[1:]])
            owners.append(torch.full((block.num_units - 1,), index))
            steps.append(unit_cost(block, cost))
        none = torch.empty(0, dtype=torch.float64)
        self.scores, by_score = torch.cat([none, *values]).sort(descending=True, stable=True)
        self._owners = torch.cat([none.long(), *owners])[by_score]
        added = torch.tensor(steps, dtype=torch.float64)[self._owners].cumsum(0)
        least = sum(cost(block, 1, 1) for block in blocks)
        self.costs = least + torch.cat([added.new_zeros(1), added])

    def most_within(self, budget: float) -> int:
        """How many units beyond one a block a budget pays for; -1 if not even those."""
        allowed = budget * (1 + 1e-12)  # sums of costs are rounded
        return int(torch.searchsorted(self.costs, allowed, right=True)) - 1

    def units(self, count: int) -> dict[str, Tensor]:
        """What stays if the first `count` units do: ascending indices, int64, by block name."""
        sizes = 1 + torch.bincount(self._owners[:count], minlength=len(self._blocks))
        return {
            block.name: order[:size].sort().values
            for block, order, size in zip(self._blocks, self._orders, sizes.tolist(), strict=True)
        }


def unit_cost(block: Block, cost: CostFunction) -> float:
    """What one more unit of a block costs."""
    return cost(block, 2, 2) - cost(block, 1, 1)


def budget_of(
    blocks: Sequence[Block], untouched: Sequence[Block], fraction: float, cost: CostFunction
) -> float:
    """What `blocks` may cost together if all blocks keep a fraction and `untouched` are whole."""

    def total(some: Sequence[Block]) -> float:
        return sum(full_cost(block, cost) for block in some)

    return fraction * total([*blocks, *untouched]) - total(untouched)
