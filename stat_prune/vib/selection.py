"""From trained masks to the units that stay, within the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stat_prune.blocks import Block
from stat_prune.vib.cost import MaskCosts


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
        That ``log alpha < 0`` alone would have kept, with one unit a block at least.
    """

    kept: list[Tensor]
    fraction: float
    threshold_fraction: float


def select(log_alphas: Sequence[Tensor], costs: MaskCosts, target: float) -> Selection:
    """Keep the units of least ``log alpha`` that fit, whatever their block.

    The threshold of the method, ``log alpha < 0``, meets a budget only as well as the multipliers
    have converged. The order of ``log alpha`` fills it: a unit that is too dear for what is left is
    passed over, and cheaper ones go on. The best unit of every block stays, for a sublayer of none
    is no model that transformers can run.

    Parameters
    ----------
    log_alphas : sequence of Tensor of shape (masks,)
        By block.
    costs : MaskCosts
    target : float
        Kept fraction, no less than one unit a block costs.
    """
    alphas = [one.detach().double().cpu() for one in log_alphas]
    kept = [torch.zeros(len(one), dtype=torch.bool) for one in alphas]
    for mask, one in zip(kept, alphas, strict=True):
        mask[one.argmin()] = True
    counts = [len(one) for one in alphas]
    owners = torch.arange(len(alphas)).repeat_interleave(torch.tensor(counts)).tolist()
    places = [place for count in counts for place in range(count)]
    remaining = (target - float(costs.fraction([1.0] * len(alphas)))) * costs.total
    remaining += 1e-9 * costs.total  # sums of costs are rounded
    for index in torch.cat(alphas).argsort(stable=True).tolist():
        owner, place = owners[index], places[index]
        price = costs.per_mask[owner]
        if not kept[owner][place] and price <= remaining:
            kept[owner][place] = True
            remaining -= price
    below = [max(int((one < 0).sum()), 1) for one in alphas]
    return Selection(
        kept=kept,
        fraction=float(costs.fraction([int(mask.sum()) for mask in kept])),
        threshold_fraction=float(costs.fraction(below)),
    )


def kept_units(block: Block, kept: Tensor) -> Tensor:
    """Units of a block whose masks are kept, ascending; int64."""
    return kept.repeat_interleave(block.units_per_group).nonzero().squeeze(1)
