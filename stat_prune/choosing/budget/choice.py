"""From a budget to a candidate for each block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from stat_prune.choosing.budget.allocation import (
    Menu,
    allocate,
    allocate_evenly,
    allocate_same_sizes,
    joint_menu,
    menu_for,
    raise_unreachable,
)
from stat_prune.choosing.budget.bisection import TOLERANCE, search
from stat_prune.choosing.budget.costs import Budget, CostFunction, full_cost
from stat_prune.choosing.criteria import Candidates
from stat_prune.errors import TargetError
from stat_prune.measuring.timing import TimedModel
from stat_prune.model.blocks import Block
from stat_prune.settings.targets import Target


def choose(
    candidates: Sequence[Candidates],
    weights: Sequence[float | Tensor],
    budget: Budget,
    *,
    untouched: Sequence[Block] = (),
    round_to: int = 1,
    uniform: bool = False,
    even: bool = False,
    share: float | None = None,
    levels: int | None = None,
) -> list[int]:
    """The candidate of each block that keeps to a budget.

    Parameters
    ----------
    candidates : sequence of Candidates
    weights : sequence of float or of Tensor of shape (c,), float64
        Effect on the output for each unit of a block's relative squared error, by block or by
        candidate.
    budget : Budget
    untouched : sequence of Block
        Blocks that are kept whole but belong to what the fraction is of.
    round_to : int
        Multiples that numbers of neurons are kept to.
    uniform : bool
        The same sizes in every layer.
    even : bool
        The same fraction of every block, whatever the errors.
    share : float, optional
        Of a `Latency`: what to spend of the time that the tables have, as `share_of` has it of
        another choice. No whole model is timed then.
    levels : int, optional
        About how many sizes of each block to look at; all by default.

    Returns
    -------
    list of int
        One index a block.

    Raises
    ------
    TargetError
        If the target cannot be reached.
    """
    target, timed = budget.target, budget.timed
    blocks = [*(one.block for one in candidates), *untouched]
    named = [block for members, _ in budget.fractions_of(blocks) for block in members]
    ignored = [b.name for b in untouched if not b.fixed and b in named]
    if uniform and ignored:
        raise TargetError(
            f"uniform=True gives every layer the same sizes, but {ignored[0]} is ignored. "
            "Leave out one of the two."
        )
    spread = partial(
        _spread,
        candidates,
        weights,
        untouched=untouched,
        uniform=uniform,
        even=even,
        levels=levels,
    )
    if timed is None:
        cost = None if target.bounds_error else budget.cost
        choice = spread(budget.fractions_of(blocks), cost, round_to)
        _check_something_left(candidates, choice, target)
        return choice

    # Below it, nothing would be left of any block.
    least = timed.least_seconds / max(sum(full_cost(b, timed.cost) for b in blocks), 1e-300)

    def chosen(share: float) -> list[int]:
        return spread([(blocks, max(share, least))], timed.cost, timed.round_to)

    def measured(choice: list[int]) -> float:
        sizes = [
            (one.block, int(one.num_units[index]), int(one.num_groups[index]))
            for one, index in zip(candidates, choice, strict=True)
        ]
        return 1 / timed.compare_sizes(sizes).speed_up

    if share is not None:
        choice = chosen(share)
    else:
        choice = search(target.fractions()["all"], 1 / timed.least.speed_up, chosen, measured)
    _check_something_left(candidates, choice, target)
    return choice


def share_of(
    candidates: Sequence[Candidates],
    choice: Sequence[int],
    untouched: Sequence[Block],
    timed: TimedModel,
) -> float:
    """What a choice takes of the time that the tables of a timed model have for all blocks."""
    costs = [
        timed.cost(one.block, int(one.num_units[index]), int(one.num_groups[index]))
        for one, index in zip(candidates, choice, strict=True)
    ]
    blocks = [*(one.block for one in candidates), *untouched]
    return sum(costs) / max(sum(full_cost(block, timed.cost) for block in blocks), 1e-300)


def _check_something_left(
    candidates: Sequence[Candidates], choice: Sequence[int], target: Target
) -> None:
    """Refuse to remove everything: a model that is all biases computes nothing."""
    if _is_nothing(candidates, choice):
        raise TargetError(
            f"With {target!r} nothing would be left of any block that can be pruned. Ask for less, "
            "or pass remove_blocks=False."
        )


def _spread(
    candidates: Sequence[Candidates],
    weights: Sequence[float | Tensor],
    budgets: Sequence[tuple[list[Block], float]],
    cost: CostFunction | None,
    round_to: int,
    *,
    untouched: Sequence[Block],
    uniform: bool,
    even: bool,
    levels: int | None,
) -> list[int]:
    """The candidate of each block within budgets of a cost, or, without one, within tolerances."""
    chosen = [len(one.prefixes) - 1 for one in candidates]
    blocks = [one.block for one in candidates]
    bought: list[tuple[list[Menu], list[list[int]], float]] = []
    for members, fraction in budgets:
        sets = _chosen_as_one(blocks, members)
        parts = [blocks[together[0]].part for together in sets]
        if cost is None:
            choice = _within_tolerances(candidates, sets, fraction, round_to)
            if uniform:
                choice = _largest_of_part(parts, choice)
        else:
            menus = [
                joint_menu(
                    [menu_for(candidates[i], weights[i], cost, round_to, levels) for i in together],
                    part,
                )
                for together, part in zip(sets, parts, strict=True)
            ]
            fixed = [_whole(full_cost(b, cost)) for b in untouched if b in members]
            if uniform:
                choice = allocate_same_sizes(menus, parts, fraction, fixed)
            else:
                choice = (allocate_evenly if even else allocate)([*menus, *fixed], fraction)
                budget = fraction * sum(menu.full_cost for menu in [*menus, *fixed])
                bought.append((menus, sets, budget))
        # The menus of untouched blocks come last and have no candidate.
        _take(chosen, zip(sets, choice, strict=False))
    if bought and _is_nothing(candidates, chosen):
        _take(chosen, [_least_of_something(bought)])
    return chosen


def _chosen_as_one(blocks: Sequence[Block], members: Sequence[Block]) -> list[list[int]]:
    """Numbers of the blocks among some: experts of a set together, as they are of one size."""
    sets: dict[str, list[int]] = {}
    for number, block in enumerate(blocks):
        if block in members:
            sets.setdefault(block.set_name, []).append(number)
    return list(sets.values())


def _take(chosen: list[int], choice: Iterable[tuple[Sequence[int], int]]) -> None:
    """Note the candidate of all blocks that are chosen as one, in place."""
    for together, index in choice:
        for number in together:
            chosen[number] = index


def _least_of_something(
    bought: Sequence[tuple[list[Menu], list[list[int]], float]],
) -> tuple[list[int], int]:
    """The blocks, and their candidate, that add the least error to that of nothing at all."""
    moves = [move for one in bought for move in _moves_from_nothing(*one)]
    _, together, index = min(moves, default=(0.0, [], 0))
    return together, index


#: Error that a candidate adds to that of nothing, the blocks that take it, and which it is.
_Move = tuple[float, list[int], int]


def _moves_from_nothing(
    menus: Sequence[Menu], sets: Sequence[list[int]], budget: float
) -> list[_Move]:
    """What a budget can buy where all blocks might leave."""
    moves: list[_Move] = []
    for menu, together in zip(menus, sets, strict=True):
        fits = ((menu.costs > 0) & (menu.costs <= budget * (1 + 1e-9))).nonzero().squeeze(1)
        added = menu.errors[fits] - menu.errors[0]
        moves += [
            (float(error), together, int(menu.indices[i]))
            for error, i in zip(added, fits, strict=True)
        ]
    return moves


def _is_nothing(candidates: Sequence[Candidates], choice: Sequence[int]) -> bool:
    return not any(one.prefixes[index][1] for one, index in zip(candidates, choice, strict=True))


def check_reachable(
    blocks: Sequence[Block],
    untouched: Sequence[Block],
    budget: Budget,
    *,
    round_to: int,
    remove: bool = False,
    why: str = "",
) -> None:
    """Refuse, before any work, a budget below one head and the fewest neurons in every block.

    With `remove`, blocks that can leave altogether cost nothing, but one of them stays. `why` is
    what the user should know of the untouched blocks.

    Raises
    ------
    TargetError
        Stating the least fraction that can be reached.
    """
    target = budget.target
    if target.bounds_error:
        return
    if budget.timed is not None:
        _check_time(target, budget.timed)
        return
    cost = budget.cost
    for members, fraction in budget.fractions_of([*blocks, *untouched]):
        whole = sum(full_cost(block, cost) for block in members if block in untouched)
        cut = [block for block in members if block not in untouched]
        fewest = [_least_cost(block, cost, round_to) for block in cut]
        # What each block costs where another has the one unit that has to stay.
        lowest = [
            cost(block, 0, 0) if remove and block.removable else units
            for block, units in zip(cut, fewest, strict=True)
        ]
        one = min((a - b for a, b in zip(fewest, lowest, strict=True)), default=0.0)
        least = whole + sum(lowest) + one
        total = whole + sum(full_cost(block, cost) for block in cut)
        if least > fraction * total * (1 + 1e-9):
            reasons = dict.fromkeys(block.fixed for block in members if block.fixed)
            raise_unreachable(fraction, least, total, " ".join([*reasons, why]), remove=remove)


def _check_time(target: Target, timed: TimedModel) -> None:
    fraction, most = target.fractions()["all"], timed.least.speed_up
    if fraction * most < 1 - TOLERANCE:
        batch_size, seq_length = timed.batch["input_ids"].shape
        raise TargetError(
            f"A speed-up of {1 / fraction:.4g} (a kept fraction of {fraction:.4g} of the time) is "
            "beyond the most that can be reached: with the least of every block the model is "
            f"{most:.4g} times as fast as the dense one, on {batch_size} x {seq_length} tokens; "
            "embeddings and the rest stay as they are. Ask for less, or time larger batches."
        )


def _least_cost(block: Block, cost: CostFunction, round_to: int) -> float:
    if block.kind == "heads":
        return cost(block, 1, 1)
    units = min(math.lcm(round_to, block.multiple), block.num_units)
    return cost(block, units, units)


def _whole(cost: float) -> Menu:
    """The menu of a block that may not change."""
    return Menu(
        indices=torch.zeros(1, dtype=torch.int64),
        costs=torch.tensor([cost], dtype=torch.float64),
        errors=torch.zeros(1, dtype=torch.float64),
        full_cost=cost,
    )


def _within_tolerances(
    candidates: Sequence[Candidates], sets: Sequence[Sequence[int]], tolerance: float, round_to: int
) -> list[int]:
    """The candidate of each set of blocks that keeps all of them within the tolerance."""
    return [
        max(_within_tolerance(candidates[number], tolerance, round_to) for number in together)
        for together in sets
    ]


def _within_tolerance(candidates: Candidates, tolerance: float, round_to: int) -> int:
    """The candidate of the fewest parameters whose activation error is within the tolerance."""
    menu = menu_for(candidates, 1.0, Block.parameters, round_to)
    errors = candidates.activation_errors[menu.indices].clamp_min(0).sqrt()
    return int(menu.indices[(errors <= tolerance).nonzero()[0, 0]])


def _largest_of_part(parts: Sequence[str], choice: Sequence[int]) -> list[int]:
    """The largest index chosen within each part, so that every block keeps to its tolerance."""
    largest: dict[str, int] = {}
    for part, index in zip(parts, choice, strict=True):
        largest[part] = max(index, largest.get(part, 0))
    return [largest[part] for part in parts]
