"""The expected cost of a masked model, and the Lagrangian that holds it at the target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch
from torch import Tensor, nn

from stat_prune.choosing.budget.allocation import raise_unreachable
from stat_prune.choosing.budget.costs import CostFunction, full_cost
from stat_prune.errors import TargetError
from stat_prune.model.blocks import Block
from stat_prune.vib.masks import VIBMask


@dataclass(frozen=True)
class MaskCosts:
    """What masks pay for, in the unit of the target (MACs or parameters).

    Attributes
    ----------
    per_mask : tuple of float
        By block: a neuron, or a key/value head with its query heads.
    fixed : float
        What stays whatever the masks: blocks that are left alone, biases of consumers.
    total : float
        Of all blocks as they are; fractions are of this.
    staying : tuple of bool
        By block: whether one unit has to stay, for it cannot leave altogether.
    """

    per_mask: tuple[float, ...]
    fixed: float
    total: float
    staying: tuple[bool, ...]

    @classmethod
    def of(
        cls,
        blocks: Sequence[Block],
        untouched: Sequence[Block],
        cost: CostFunction,
        *,
        sublayers: bool = False,
    ) -> MaskCosts:
        """Costs are linear in the number of units that stay.

        With `sublayers`, blocks leave altogether where their families allow it.
        """
        empty = [cost(block, 0, 0) for block in blocks]
        each = [cost(b, b.units_per_group, 1) - e for b, e in zip(blocks, empty, strict=True)]
        fixed = sum(empty) + sum(full_cost(block, cost) for block in untouched)
        whole = sum(c * b.num_groups for c, b in zip(each, blocks, strict=True))
        staying = tuple(not (sublayers and block.removable) for block in blocks)
        return cls(tuple(each), fixed, fixed + whole, staying)

    def check_reachable(self, fraction: float) -> None:
        """Refuse a target that one unit of every block that stays, or of any, is beyond.

        Raises
        ------
        TargetError
        """
        needed = [each for each, stays in zip(self.per_mask, self.staying, strict=True) if stays]
        least = self.fixed + (sum(needed) or min(self.per_mask))
        if least <= fraction * self.total * (1 + 1e-9):
            return
        if all(self.staying):
            raise_unreachable(fraction, least, self.total)
        raise TargetError(
            f"A kept fraction of {fraction:g} is below the least that can be reached: what has to "
            f"stay already costs {least / self.total:.4g} of the whole. Ask for more."
        )

    def of_blocks(self, present: Sequence[bool]) -> MaskCosts:
        """With masks on some of the blocks, the others having nothing left."""
        return replace(
            self,
            per_mask=tuple(compress(self.per_mask, present)),
            staying=tuple(compress(self.staying, present)),
        )

    def steps(self, whole: Iterable[bool]) -> list[float]:
        """The fraction that one more mask costs, of each block that is not kept whole."""
        priced = zip(self.per_mask, whole, strict=True)
        return [each / self.total for each, kept in priced if not kept]

    def fraction(self, counts: Iterable[float | Tensor]) -> float | Tensor:
        """Fraction of the whole that so many masks of each block cost."""
        paid = sum(each * count for each, count in zip(self.per_mask, counts, strict=True))
        return (self.fixed + paid) / self.total

    def expected(self, masks: Iterable[VIBMask], slope: float) -> Tensor:
        """Differentiable: every unit counts by its probability to stay."""
        expected = self.fraction(mask.keep_probability(slope).sum() for mask in masks)
        return torch.as_tensor(expected)


class Lagrangian(nn.Module):
    """``linear (E - t) + quadratic (E - t)^2``, which the multipliers ascend (Wang et al. 2020).

    Xia et al. 2022 (CoFi), appendix, and VTrans hold the cost with it. ``E`` is the expected
    fraction, ``t`` the target; both multipliers start at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.zeros(()))

    def forward(self, expected: Tensor, target: float) -> Tensor:
        """The penalty; its gradient in the multipliers is the violation and its square."""
        violation = expected - target
        return self.linear * violation + self.quadratic * violation.square()


def warmed_up(start: float, target: float, step: int, warmup_steps: int) -> float:
    """The target at a step: it falls linearly from `start` for `warmup_steps`."""
    return start - (start - target) * min(1.0, step / max(warmup_steps, 1))
