"""How a budget is spread over blocks: the least predicted error for the cost allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from stat_prune.choosing.budget.costs import CostFunction, candidate_costs, full_cost
from stat_prune.choosing.criteria import Candidates
from stat_prune.errors import TargetError


@dataclass(frozen=True)
class Menu:
    """What one block may choose from, in ascending cost.

    Attributes
    ----------
    indices : Tensor of shape (c,), int64
        Into the block's `Candidates`.
    costs, errors : Tensor of shape (c,), float64
        `errors` are comparable between blocks: weighed by what they do to the output.
    full_cost : float
    """

    indices: Tensor
    costs: Tensor
    errors: Tensor
    full_cost: float


def menu_for(
    candidates: Candidates,
    weight: float | Tensor,
    cost: CostFunction,
    round_to: int = 1,
    levels: int | None = None,
) -> Menu:
    """The candidates of a block that `round_to` and the block allow, with weighed errors.

    Parameters
    ----------
    candidates : Candidates
    weight : float or Tensor of shape (c,), float64
        Effect on the output for each unit of the block's relative squared error.
    cost : callable
    round_to : int
        Multiples that the number of neurons is kept to; the full size is always allowed.
    levels : int, optional
        About how many sizes of neurons to leave, the smallest among them.
    """
    units = candidates.num_units
    allowed = torch.ones(len(units), dtype=torch.bool)
    if candidates.block.kind == "neurons":
        multiple = math.lcm(round_to, candidates.block.multiple)
        allowed = (units % multiple == 0) | (units == candidates.block.num_units)
        if levels is not None:
            smallest = units == units[allowed].min()
            coarse = multiple * max(candidates.block.num_units // (multiple * levels), 1)
            allowed &= (units % coarse == 0) | (units == candidates.block.num_units) | smallest
    sizes = candidates.block.sizes
    if sizes is not None:
        kept = zip(units.tolist(), candidates.num_groups.tolist(), strict=True)
        allowed &= torch.tensor([size in sizes for size in kept])
    indices = allowed.nonzero().squeeze(1)
    costs = candidate_costs(candidates, indices, cost)
    ascending = costs.argsort(stable=True)
    return Menu(
        indices=indices[ascending],
        costs=costs[ascending],
        errors=(weight * candidates.output_errors)[indices][ascending],
        full_cost=full_cost(candidates.block, cost),
    )


def allocate(menus: Sequence[Menu], fraction: float) -> list[int]:
    """Choose a candidate for each block: least total error within a fraction of the full cost.

    Marginal analysis on the lower convex hulls of the error curves (Fox 1966; Shoham & Gersho
    1988): steps are taken in the order of error saved per cost, which is optimal up to the one
    step that no longer fits; what then remains of the budget goes to the best single moves.

    Parameters
    ----------
    menus : sequence of Menu
    fraction : float
        In (0, 1].

    Returns
    -------
    list of int
        Index into each block's `Candidates`.

    Raises
    ------
    TargetError
        If even the cheapest candidates together cost more; states the least fraction.
    """
    budget = fraction * _total(menus)
    chosen = [int(menu.costs.argmin()) for menu in menus]
    spent = sum(float(menu.costs[i]) for menu, i in zip(menus, chosen, strict=True))
    slack = 1e-9 * max(budget, 1.0)
    if spent > budget + slack:
        raise_unreachable(fraction, spent, _total(menus))
    steps = [
        (slope, block, start, end)
        for block, menu in enumerate(menus)
        for slope, start, end in _hull_steps(menu, chosen[block])
    ]
    for _slope, block, start, end in sorted(steps, key=lambda step: (-step[0], step[1], step[3])):
        extra = float(menus[block].costs[end] - menus[block].costs[start])
        if chosen[block] == start and spent + extra <= budget + slack:
            chosen[block] = end
            spent += extra
    _spend_remainder(menus, chosen, budget + slack - spent)
    return [int(menu.indices[i]) for menu, i in zip(menus, chosen, strict=True)]


def allocate_evenly(menus: Sequence[Menu], fraction: float) -> list[int]:
    """Keep the same fraction of every block, as nearly below it as its sizes allow.

    Blocks without a choice count, and leave the others less. What rounding down leaves over is
    spent on the moves that save the most.
    """
    budget = fraction * _total(menus)
    fixed = _total([menu for menu in menus if len(menu.costs) == 1])
    share = (budget - fixed) / max(_total(menus) - fixed, 1e-300)
    chosen = []
    for menu in menus:
        within = (menu.costs <= share * menu.full_cost * (1 + 1e-12)).nonzero().squeeze(1)
        if len(within) == 0:
            chosen.append(int(menu.costs.argmin()))
            continue
        ties = within[menu.costs[within] == menu.costs[within].max()]
        chosen.append(int(ties[menu.errors[ties].argmin()]))
    spent = sum(float(menu.costs[i]) for menu, i in zip(menus, chosen, strict=True))
    if spent > budget * (1 + 1e-9):
        raise_unreachable(fraction, spent, _total(menus))
    _spend_remainder(menus, chosen, budget - spent)
    return [int(menu.indices[i]) for menu, i in zip(menus, chosen, strict=True)]


def allocate_same_sizes(
    menus: Sequence[Menu], parts: Sequence[str], fraction: float, fixed: Sequence[Menu] = ()
) -> list[int]:
    """One size for the heads of all layers and one for the neurons: the best pair that fits.

    Parameters
    ----------
    menus : sequence of Menu
        With equal costs within a part.
    parts : sequence of str
        Part of the layer that each menu's block is: ``"heads"``, ``"neurons"`` or another.
    fraction : float
    fixed : sequence of Menu
        Of blocks that stay whole.

    Raises
    ------
    TargetError
        If layers differ in size, or the budget is below the least pair.
    """
    total = _total([*menus, *fixed])
    budget = fraction * total - _total(fixed)
    joint = {
        part: joint_menu([m for m, p in zip(menus, parts, strict=True) if p == part], part)
        for part in dict.fromkeys(parts)
    }
    costs, errors, step = (torch.zeros(1, dtype=torch.float64) for _ in range(3))
    step += torch.inf  # to the next larger size of any part
    for menu in joint.values():
        costs = (costs[:, None] + menu.costs).reshape(-1)
        errors = (errors[:, None] + menu.errors).reshape(-1)
        step = torch.minimum(step[:, None], _steps(menu)).reshape(-1)
    fits = (costs <= budget * (1 + 1e-9)).nonzero().squeeze(1)
    if len(fits) == 0:
        raise_unreachable(fraction, float(costs.min()) + _total(fixed), total)
    # What the budget allows is kept, also where an error grows with the size.
    fits = fits[(costs + step)[fits] > budget * (1 + 1e-9)]
    least = fits[errors[fits] == errors[fits].min()]
    position = int(least[costs[least].argmax()])
    choice = {}
    for part, menu in reversed(joint.items()):
        position, index = divmod(position, len(menu.costs))
        choice[part] = int(menu.indices[index])
    return [choice[part] for part in parts]


def _steps(menu: Menu) -> Tensor:
    """What the next larger size costs more, for each size; infinite for the largest."""
    slack = 1e-9 * max(menu.full_cost, 1.0)
    larger = torch.searchsorted(menu.costs, menu.costs + slack, right=True)
    return torch.cat([menu.costs, menu.costs.new_full((1,), torch.inf)])[larger] - menu.costs


def _total(menus: Sequence[Menu]) -> float:
    return sum(menu.full_cost for menu in menus)


def joint_menu(menus: Sequence[Menu], part: str) -> Menu:
    """The menu of blocks that take the same size: costs and errors add up.

    Raises
    ------
    TargetError
        If their sizes differ.
    """
    first = menus[0]
    if len(menus) == 1:
        return first
    for menu in menus:
        if not torch.equal(menu.indices, first.indices):
            raise TargetError(
                f"uniform=True needs layers of one size, but the {part} of this model's layers "
                "differ. Start from the dense model, or leave uniform=False."
            )
    return Menu(
        indices=first.indices,
        costs=torch.stack([menu.costs for menu in menus]).sum(0),
        errors=torch.stack([menu.errors for menu in menus]).sum(0),
        full_cost=_total(menus),
    )


def raise_unreachable(
    fraction: float, least: float, total: float, why: str = "", *, remove: bool = False
) -> NoReturn:
    """Raise the `TargetError` of a budget below the least that blocks can cost.

    `remove` says whether that is without the blocks that can leave altogether.
    """
    what = "one head and the fewest neurons in every block"
    if remove:
        what = "one head or the fewest neurons, and the blocks that cannot leave,"
    raise TargetError(
        f"A kept fraction of {fraction:g} is below the least that can be reached: {what} already "
        f"cost {least / total:.4g} of the whole. Ask for more, or lower round_to or shorten "
        f"ignore. {why}".rstrip()
    )


@np.errstate(invalid="ignore")  # errors may be infinite
def _hull_steps(menu: Menu, start: int) -> list[tuple[float, int, int]]:
    """Steps along the lower convex hull from a candidate on: (error saved per cost, from, to)."""
    steps: list[tuple[float, int, int]] = []
    # Of a few numbers each, on which torch would take several times as long.
    costs, errors = menu.costs.numpy(), menu.errors.numpy()
    while start + 1 < len(costs):
        extra, saved = costs[start + 1 :] - costs[start], errors[start] - errors[start + 1 :]
        slopes = np.divide(saved, extra, out=np.full_like(extra, -np.inf), where=extra > 0)
        best = slopes.max()
        if not best > 0:
            break
        # Of equally good candidates the nearest, so that steps stay small.
        end = start + 1 + int((slopes >= best * (1 - 1e-12)).argmax())
        steps.append((float(best), start, end))
        start = end
    return steps


def _spend_remainder(menus: Sequence[Menu], chosen: list[int], remaining: float) -> None:
    """Best single move that fits, again and again; of moves that save nothing, the largest.

    A channel that the calibration set calls redundant may matter elsewhere, so what the budget
    allows is kept.
    """
    while True:
        moves = []
        for block, menu in enumerate(menus):
            extra = menu.costs - menu.costs[chosen[block]]
            saved = menu.errors[chosen[block]] - menu.errors
            fits = ((extra > 0) & (extra <= remaining) & (saved >= 0)).nonzero().squeeze(1)
            if len(fits):
                slopes = saved[fits] / extra[fits]
                best = fits[slopes == slopes.max()][-1]
                moves.append((float(slopes.max()), float(extra[best]), -block, int(best)))
        if not moves:
            return
        _slope, extra_cost, block, index = max(moves)
        chosen[-block] = index
        remaining -= extra_cost
