"""From trained masks to the units that stay, within the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stat_prune.choosing.budget.filling import filled
from stat_prune.model.blocks import Block
from stat_prune.vib.mask_cost import MaskCosts
from stat_prune.vib.masks import VIBMask


@dataclass(frozen=True)
class Selection:
    """What stays.

    Attributes
    ----------
    kept : list of Tensor of shape (masks,), bool
        By block.
    fraction : float
        Of the whole cost that it keeps.
    threshold_fraction : float
        That ``log alpha < 0`` alone would have kept, with one unit of every block that has to stay.
    """

    kept: list[Tensor]
    fraction: float
    threshold_fraction: float


def select(masks: Sequence[VIBMask], costs: MaskCosts, target: float) -> Selection:
    """Keep the units of least ``log alpha`` that fit, whatever their block.

    The threshold of the method, ``log alpha < 0``, meets a budget only as well as the multipliers
    have converged. The order of ``log alpha`` fills it: a unit that is too dear for what is left is
    passed over, and cheaper ones go on. A unit under the mask of a whole sublayer counts by the
    greater of the two, for it stays only if both do; units that the sublayer's mask makes equal
    follow in their own order. The best unit of every block that cannot leave altogether stays.

    Parameters
    ----------
    masks : sequence of VIBMask
        By block.
    costs : MaskCosts
    target : float
        Kept fraction, no less than `MaskCosts.check_reachable` admits.
    """
    own = [mask.log_alpha().detach().double().cpu() for mask in masks]
    alphas = [
        one if mask.whole is None else one.maximum(mask.whole.log_alpha().detach().double().cpu())
        for one, mask in zip(own, masks, strict=True)
    ]
    units = sorted(
        (alpha, its_own, owner, place)
        for owner, both in enumerate(zip(alphas, own, strict=True))
        for place, (alpha, its_own) in enumerate(zip(*(one.tolist() for one in both), strict=True))
    )
    remaining = (target - float(costs.fraction(map(float, costs.staying)))) * costs.total
    remaining += 1e-9 * costs.total  # sums of costs are rounded
    staying = [
        [int(one.argmin())] if stays else [] for one, stays in zip(own, costs.staying, strict=True)
    ]
    places = filled(
        [(owner, place) for _, _, owner, place in units],
        staying,
        lambda owner, _count: costs.per_mask[owner],
        remaining,
    )
    kept = [
        torch.zeros(len(one), dtype=torch.bool).index_fill(0, stay, True)
        for one, stay in zip(alphas, places, strict=True)
    ]
    below = [
        max(int((one < 0).sum()), int(stays))
        for one, stays in zip(alphas, costs.staying, strict=True)
    ]
    return Selection(
        kept=kept,
        fraction=float(costs.fraction([int(mask.sum()) for mask in kept])),
        threshold_fraction=float(costs.fraction(below)),
    )


def kept_units(block: Block, kept: Tensor) -> Tensor:
    """Units of a block whose masks are kept, ascending; int64."""
    return kept.repeat_interleave(block.units_per_group).nonzero().squeeze(1)
