"""Ways to spread a budget to start from, and which of them leaves the output nearest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.budget.exploring import in_vain, is_better
from stat_prune.choosing.budget.whole_model import Measurement, Measures
from stat_prune.choosing.measured import Measured
from stat_prune.errors import TargetError
from stat_prune.pipeline.budgeting.spreading import spread
from stat_prune.pipeline.run import Run
from stat_prune.settings.settings import Settings

#: Powers of the probes' weights that a budget is spread by: from all that they say to nothing.
EXPONENTS = (1.0, 0.75, 0.5, 0.25, 0.0)

#: Most starts that there are: by the weights to each power, and evenly.
MAX_STARTS = len(EXPONENTS) + 1


@dataclass(frozen=True)
class Start:
    """One way to spread a budget.

    Attributes
    ----------
    name : str
    weights : sequence of Tensor of shape (c,), float64
        By block, the effect on the output for each unit of its relative squared error.
    even : bool
        Whether every block keeps the same fraction, whatever the weights.
    """

    name: str
    weights: Sequence[Tensor]
    even: bool = False


def starts_of(weights: Sequence[Tensor], settings: Settings) -> list[Start]:
    """The probes' weights to several powers, and the same fraction of every block.

    A probe prunes one block alone. What that does to a deep model can say little of what all
    blocks do together; a lower power believes it less.
    """
    starts = [
        Start(f"probes^{power:g}" if power else "unweighted", [one**power for one in weights])
        for power in EXPONENTS
    ]
    # Where all layers are alike, one spread is as even as another; where some may leave, none is.
    if settings.uniform or settings.removes_blocks:
        return starts
    return [*starts, Start("even", starts[-1].weights, even=True)]


def spread_starts(
    run: Run,
    measured: Sequence[Measured],
    starts: Sequence[Start],
    budget: Budget,
    share: float | None = None,
) -> list[tuple[Start, list[int]]]:
    """Each start with the candidate of each block; of a time, all may be held to one share."""
    spreads = []
    for one in starts:
        try:
            choice = spread(run, measured, one.weights, budget, even=one.even, share=share)
        except TargetError:
            if not one.even:
                raise
            continue  # equal shares round up to more than the budget
        spreads.append((one, choice))
    return spreads


def nearest(
    starts: Iterable[tuple[Start, list[int]]], whole: Measures, *, errors: float = 0.0
) -> tuple[Start, dict[str, float]]:
    """The nearest to the dense model, and the distances of all that were not given up.

    One is left for a later one that is nearer by so many standard errors of the difference.
    """
    best: tuple[Start, Measurement] | None = None
    distances = {}
    for one, choice in starts:
        found: Measurement | None
        if best is None:
            found = whole.measure(choice)
            best = one, found
        elif best[1].choice == tuple(choice):
            found = best[1]
        else:
            found = whole.measure_beside(choice, best[1], in_vain)
        if found is None:
            continue
        distances[one.name] = found.distance
        if is_better(found.by_sequence, best[1].by_sequence, errors=errors):
            best = one, found
    assert best is not None
    return best[0], distances
