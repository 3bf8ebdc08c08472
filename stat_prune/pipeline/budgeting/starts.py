"""Ways to spread a budget to start from, and which of them leaves the output nearest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.budget.exploring import in_vain, is_better
from stat_prune.choosing.budget.whole_model import Measurement, Measures, size_of_part
from stat_prune.choosing.measured import Measured
from stat_prune.data.calibration import CalibrationSet
from stat_prune.errors import TargetError
from stat_prune.pipeline.budgeting.spreading import spread
from stat_prune.pipeline.run import Run
from stat_prune.settings.settings import Settings

#: Powers of the probes' weights that a budget is spread by: from all that they say to nothing.
EXPONENTS = (1.0, 0.75, 0.5, 0.25, 0.0)


class Effort(NamedTuple):
    """What may be spent on a search.

    Attributes
    ----------
    part : int
        Starts are compared on the calibration set divided by this.
    rounds : tuple of (int, float)
        Of the search: times the sequences that starts are compared on, and what may be computed,
        in forward passes of the dense model over the calibration set.
    errors : float
        Standard errors by which a start has to be nearer than those before it.
    """

    part: int
    rounds: tuple[tuple[int, float], ...] = ()
    errors: float = 0.0

    def num_compared(self, num_samples: int) -> int:
        """Of so many calibration sequences, those that starts are compared on."""
        return min(max(num_samples // self.part, MIN_MEASURED), num_samples)

    def errors_on(self, num_sequences: int) -> float:
        """`errors` on so many sequences: few are not trusted."""
        return 1.0 if num_sequences < MIN_TRUSTED else self.errors


#: Where the output has a value a token: few sequences tell much, and more are taken as moves get
#: smaller.
BY_TOKEN = {
    "fast": Effort(16),
    "normal": Effort(12, ((1, 1.5), (2, 1.5))),
    "thorough": Effort(8, ((1, 4.0), (2, 4.0), (4, 4.0))),
}

#: Where it has one a sequence: a search on few would be a search for what suits just these, and
#: which start is taken as well.
BY_SEQUENCE = {
    "fast": Effort(4, errors=1.0),
    "normal": Effort(2, ((1, 2.5),), errors=1.0),
    "thorough": Effort(1, ((1, 10.0),), errors=1.0),
}

#: Fewest sequences that anything is measured on, where there are so many; and how many have to be
#: for the nearest start to be taken as it is.
MIN_MEASURED, MIN_TRUSTED = 16, 32

#: Parts of the sequences after which a choice that is worse may be given up.
NUM_PARTS = 8

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


def effort_of(name: str, positions_per_sequence: float) -> Effort:
    """What a search may spend, by how many values the output has for a sequence."""
    return (BY_TOKEN if positions_per_sequence > 1 else BY_SEQUENCE)[name]


def to_measure_on(sequences: CalibrationSet, count: int, seed: int) -> CalibrationSet:
    """So many sequences; no batch is larger than what may be the last part to be computed."""
    count = min(count, sequences.num_samples)
    size = min(size_of_part(count, NUM_PARTS), sequences.batch_size)
    return sequences.subset(count, seed=seed, batch_size=size)


def every_start(weights: Sequence[Tensor]) -> list[Start]:
    """The probes' weights to several powers, and the same fraction of every block.

    A probe prunes one block alone. What that does to a deep model can say little of what all
    blocks do together; a lower power believes it less.
    """
    starts = [
        Start(f"probes^{power:g}" if power else "unweighted", [one**power for one in weights])
        for power in EXPONENTS
    ]
    return [*starts, Start("even", starts[-1].weights, even=True)]


def starts_of(weights: Sequence[Tensor], settings: Settings) -> list[Start]:
    """Those of `every_start` that settings leave different from each other.

    Where all layers are alike, one spread is as even as another; where some may leave, none is.
    """
    alike = settings.uniform or settings.removes_blocks
    return [one for one in every_start(weights) if not (one.even and alike)]


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
) -> tuple[Start, Measurement, dict[str, float]]:
    """The nearest to the dense model, as measured, and the distances of all not given up.

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
    return *best, distances
