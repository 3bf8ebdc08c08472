"""Whether a pruned model is as large as was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from stat_prune.choosing.budget.costs import Budget, CostFunction, full_cost
from stat_prune.errors import TargetError
from stat_prune.model.blocks import Block
from stat_prune.pipeline.run import Run
from stat_prune.settings.targets import Latency, Target, Tolerance

#: Relative distance from the target that needs no reason.
TOLERANCE = 0.01


def check_reached(
    run: Run, budget: Budget, sizes: Sequence[tuple[Block, int, int]], *, uniform: bool = False
) -> None:
    """Refuse what is neither near the target nor at the next possible size below it.

    Parameters
    ----------
    run : Run
    budget : Budget
        Times and tolerances are not looked at here.
    sizes : sequence of (Block, int, int)
        Units and key/value heads that stay of each block of the run, which has the bias that its
        consumer is given.
    uniform : bool
        Whether blocks of a part are of one size.

    Raises
    ------
    TargetError
        With both fractions.
    """
    target = budget.target
    if isinstance(target, Tolerance | Latency):
        return
    cost = budget.cost
    spent_on = {block.name: cost(block, units, groups) for block, units, groups in sizes}
    as_kept = {block.name: block for block, _, _ in sizes}
    for members, fraction in budget.fractions_of([*run.blocks, *run.untouched]):
        total = sum(full_cost(block, cost) for block in members)
        spent = sum(spent_on.get(block.name, full_cost(block, cost)) for block in members)
        grown: dict[str, float] = {}  # what growing by a size costs all that are of one size
        for block in members:
            if block.name in spent_on:
                name = block.part if uniform else block.set_name
                extra = _next_size(
                    as_kept[block.name], cost, run.settings.round_to, spent_on[block.name]
                )
                grown[name] = grown.get(name, 0.0) + extra
        check_fraction(target, fraction, spent / total, (one / total for one in grown.values()))


def check_fraction(target: Target, asked: float, reached: float, steps: Iterable[float]) -> None:
    """Refuse a kept fraction that is further than 1 % from what was asked for, but with reason.

    Parameters
    ----------
    target : Target
    asked, reached : float
    steps : iterable of float
        By how much the next possible sizes would be more.
    """
    left = asked - reached
    if abs(left) <= TOLERANCE * asked:
        return
    # A method that takes its units in one order stops at the first that no longer fits.
    possible = [step for step in steps if step < math.inf]
    if left < 0 or (possible and max(possible) <= left):
        raise TargetError(
            f"{target!r} asks for {asked:.4g} of the whole, but {reached:.4g} was reached, and "
            "other sizes come nearer: what was measured of the blocks does not tell them apart, "
            "or the method cannot keep to this target. Use other calibration examples, another "
            "target, or method='stat'."
        )


def _next_size(block: Block, cost: CostFunction, round_to: int, spent: float) -> float:
    """What the smallest of the larger sizes costs more; infinite for the full size.

    Of groups with several units: of the sizes with one more whole group. The same heads in more
    groups cost more and may compute less.
    """
    multiple = math.lcm(round_to, block.multiple) if block.kind == "neurons" else 1
    if block.units_per_group > 1 and block.num_groups > 1:
        whole = range(1, block.num_groups + 1)
        sizes = [(count * block.units_per_group, count) for count in whole]
    elif block.units_per_group > 1:
        sizes = [(count, 1) for count in range(1, block.num_units + 1)]
    else:
        counts = {*range(multiple, block.num_units, multiple), block.num_units}
        sizes = [(count, count) for count in counts]
    slack = cost(block, 1, 1) * 1e-6
    allowed = sizes if block.sizes is None else [size for size in sizes if size in block.sizes]
    larger = (cost(block, *size) - spent for size in allowed)
    return min((extra for extra in larger if extra > slack), default=math.inf)
