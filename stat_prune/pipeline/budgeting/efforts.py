"""What a search for a budget may spend, and the sequences that it measures on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stat_prune.choosing.budget.whole_model import size_of_part
from stat_prune.data.calibration import CalibrationSet
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.solving_again.second_pass import moves_consumers


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
    before_second_pass : bool
        Whether it is searched where consumers are solved for a second time, too.
    """

    part: int
    rounds: tuple[tuple[int, float], ...] = ()
    errors: float = 0.0
    before_second_pass: bool = False

    def rounds_before(self, *, second_pass: bool) -> tuple[tuple[int, float], ...]:
        """Those of the search, where consumers are solved for once or twice."""
        return self.rounds if self.before_second_pass or not second_pass else ()

    def num_compared(self, num_samples: int) -> int:
        """Of so many calibration sequences, those that starts are compared on."""
        return min(max(num_samples // self.part, MIN_MEASURED), num_samples)

    def errors_on(self, num_sequences: int) -> float:
        """`errors` on so many sequences: few are not trusted."""
        return 1.0 if num_sequences < MIN_TRUSTED else self.errors


#: Where the output has a value a token: few sequences tell much, and more are taken as moves get
#: smaller. What a short search finds, a second pass makes up for without.
BY_TOKEN = {
    "fast": Effort(16),
    "normal": Effort(12, ((1, 1.5), (2, 1.5))),
    "thorough": Effort(8, ((1, 4.0), (2, 4.0), (4, 4.0)), before_second_pass=True),
}

#: Where it has one a sequence: a search on few would be a search for what suits just these, and
#: which start is taken as well.
BY_SEQUENCE = {
    "fast": Effort(4, errors=1.0),
    "normal": Effort(2, ((1, 2.5),), errors=1.0),
    "thorough": Effort(1, ((1, 10.0),), errors=1.0, before_second_pass=True),
}

#: Fewest sequences that anything is measured on, where there are so many; and how many have to be
#: for the nearest start to be taken as it is.
MIN_MEASURED, MIN_TRUSTED = 16, 32

#: Parts of the sequences after which a choice that is worse may be given up.
NUM_PARTS = 8


def effort_of(name: str, positions_per_sequence: float) -> Effort:
    """What a search may spend, by how many values the output has for a sequence."""
    return (BY_TOKEN if positions_per_sequence > 1 else BY_SEQUENCE)[name]


@dataclass(frozen=True)
class Trials:
    """What whole pruned models of a run are measured on.

    Attributes
    ----------
    run : Run
    effort : Effort
    positions_per_sequence : float
        Values that the objective has for a typical sequence.
    """

    run: Run
    effort: Effort
    positions_per_sequence: float

    @classmethod
    def of(cls, run: Run, positions_per_sequence: float) -> Trials:
        """By how many values the objective has for a sequence."""
        effort = effort_of(run.settings.effort, positions_per_sequence)
        return cls(run, effort, positions_per_sequence)

    @property
    def num_compared(self) -> int:
        """Calibration sequences that starts are compared on."""
        return self.effort.num_compared(self.run.calibration.num_samples)

    @property
    def errors(self) -> float:
        """Standard errors by which a start has to be nearer than those before it."""
        return self.effort.errors_on(self.num_compared)

    @property
    def rounds(self) -> tuple[tuple[int, float], ...]:
        """Those of the effort; none where there are no sequences to judge them on."""
        if self.run.calibration.held_out is None:
            return ()
        settings = self.run.settings
        # Published methods are given what the default would be.
        second_pass = settings.tries_second_pass or settings.baseline is not None
        return self.effort.rounds_before(
            second_pass=second_pass and moves_consumers(self.run.blocks)
        )

    def sequences(self, times: int = 1) -> CalibrationSet:
        """So many times the calibration sequences that starts are compared on."""
        return self._to_measure_on(self.run.calibration, times * self.num_compared)

    def held_out(self) -> CalibrationSet:
        """All that are held out."""
        held_out = self.run.calibration.held_out
        assert held_out is not None
        return self._to_measure_on(held_out, held_out.num_samples)

    def _to_measure_on(self, sequences: CalibrationSet, count: int) -> CalibrationSet:
        """So many; no batch is larger than what may be the last part to be computed."""
        count = min(count, sequences.num_samples)
        size = min(size_of_part(count, NUM_PARTS), sequences.batch_size)
        return sequences.subset(count, seed=self.run.settings.seed, batch_size=size)
