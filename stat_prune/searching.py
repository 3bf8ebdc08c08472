"""The stage that spreads a budget by what whole pruned models do to the output."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from stat_prune.budget.choice import share_of
from stat_prune.budget.exploring import Point, explore, in_vain, is_better
from stat_prune.budget.objectives import objective_named
from stat_prune.budget.search_report import Search, SearchRound
from stat_prune.budget.sensitivity import positions_per_sequence
from stat_prune.budget.whole_model import Measurement, WholeModel
from stat_prune.calibration import CalibrationSet
from stat_prune.correction import FoldedConsumer
from stat_prune.errors import TargetError
from stat_prune.folding import fold_candidate
from stat_prune.gathering import gathered_numerical_warnings
from stat_prune.methods import Method
from stat_prune.run import Run
from stat_prune.selection import Candidates
from stat_prune.settings import Settings
from stat_prune.spreading import spread
from stat_prune.statistics import BlockStatistics
from stat_prune.targets import Target

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

#: Sizes of a block that a search looks at, and parts of its sequences after which a choice that is
#: worse may be given up.
LEVELS, NUM_PARTS = 64, 8


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


class BudgetSearch:
    """Spreads budgets over the blocks of a run; what targets have in common is computed once.

    Parameters
    ----------
    run : Run
    recipe : Method
    statistics : sequence of BlockStatistics
    candidates : sequence of Candidates
    weights : sequence of Tensor of shape (c,), float64
        From the probes.
    """

    def __init__(
        self,
        run: Run,
        recipe: Method,
        statistics: Sequence[BlockStatistics],
        candidates: Sequence[Candidates],
        weights: Sequence[Tensor],
    ) -> None:
        self._run, self._candidates, self._weights = run, candidates, weights
        self._objective = objective_named(run.settings.objective)
        self._folded = _Folded(recipe, statistics, candidates)
        self._wholes: dict[str, WholeModel] = {}

    def choose(self, target: Target) -> tuple[list[int], Search]:
        """The candidate of each block for a target, and how it was found."""
        run = self._run
        spent = self._passes
        with (
            run.stage("search the budget"),
            gathered_numerical_warnings("folding candidates in the search"),
        ):
            share = self._share(target)
            starts = starts_of(self._weights, run.settings)
            whole = self._on_calibration(1)
            few = whole.num_sequences < MIN_TRUSTED
            errors = 1.0 if few else self._effort.errors
            best, distances = self._best(whole, starts, target, share, errors=errors)
            contenders, rounds = [best], []
            # In equal shares there are no weights to move.
            weighed = starts[0] if best.even else best
            for number in range(len(self._rounds)):
                weighed, found = self._round(number, weighed, target, share)
                rounds.append(found)
                contenders += [weighed] if found.accepted else []
            held_out: dict[str, float] = {}
            if len(contenders) > 1:
                best, held_out = self._best(self._on_held_out(), contenders, target, share)
            choice = self._exact(best, target)
        return choice, Search(
            effort=run.settings.effort,
            sequences=whole.num_sequences,
            starts=distances,
            rounds=rounds,
            held_out=held_out,
            held_out_sequences=self._on_held_out().num_sequences if held_out else 0,
            taken=best.name,
            passes=self._passes - spent,
        )

    def _best(
        self,
        whole: WholeModel,
        starts: Sequence[Start],
        target: Target,
        share: float | None,
        *,
        errors: float = 0.0,
    ) -> tuple[Start, dict[str, float]]:
        """The nearest to the dense model, and the distances of all that were not given up.

        One is left for a later one that is nearer by so many standard errors of the difference.
        """
        best: tuple[Start, Measurement] | None = None
        distances = {}
        for one in self._run.tracked(starts):
            try:
                choice = self._exact(one, target, share)
            except TargetError:
                if not one.even:
                    raise
                continue  # equal shares round up to more than the budget
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

    def _exact(self, start: Start, target: Target, share: float | None = None) -> list[int]:
        return spread(
            self._run, self._candidates, start.weights, target, even=start.even, share=share
        )

    def _round(
        self, number: int, start: Start, target: Target, share: float | None
    ) -> tuple[Start, SearchRound]:
        """Search on from a start, on more sequences than the round before."""
        run, (times, passes) = self._run, self._rounds[number]
        whole = self._on_calibration(times)

        def near(weights: Sequence[Tensor]) -> list[int]:
            return spread(run, self._candidates, weights, target, share=share, levels=LEVELS)

        def advance() -> None:
            run.expect(1)
            run.advance()

        begun = whole.measure(near(start.weights))
        found = explore(
            Point(start.weights, begun),
            near,
            whole,
            layers=[block.layer for block in run.blocks],
            parts=[block.part for block in run.blocks],
            passes=passes * run.calibration.num_samples / whole.num_sequences,
            seed=run.settings.seed + number,
            advance=advance,
        )
        report = SearchRound(
            sequences=whole.num_sequences,
            evaluations=found.evaluations,
            accepted=found.accepted,
            before=begun.distance,
            after=found.point.measured.distance,
        )
        return Start(report.name, found.point.weights), report

    @property
    def _rounds(self) -> tuple[tuple[int, float], ...]:
        """None where there are no sequences to judge them on."""
        return () if self._run.calibration.held_out is None else self._effort.rounds

    def _share(self, target: Target) -> float | None:
        """Of a time, what all choices are to take by the tables: as much as one that is timed."""
        timed = self._run.timed(target)
        if timed is None:
            return None
        choice = spread(self._run, self._candidates, self._weights, target)
        return share_of(self._candidates, choice, self._run.untouched, timed)

    def _on_calibration(self, times: int) -> WholeModel:
        """So many times the calibration sequences that starts are compared on."""
        calibration = self._run.calibration
        count = max(calibration.num_samples // self._effort.part, MIN_MEASURED)
        return self._whole(f"calibration x {times}", calibration, times * count)

    def _on_held_out(self) -> WholeModel:
        held_out = self._run.calibration.held_out
        assert held_out is not None
        return self._whole("held out", held_out, held_out.num_samples)

    def _whole(self, name: str, sequences: CalibrationSet, count: int) -> WholeModel:
        if name not in self._wholes:
            count = min(count, sequences.num_samples)
            # No batch is larger than what may be the last part to be computed.
            size = min(max(-(-count // NUM_PARTS), 1), sequences.batch_size)
            self._wholes[name] = WholeModel(
                self._run.model,
                [block.layer for block in self._run.blocks],
                self._folded,
                sequences.subset(count, seed=self._run.settings.seed, batch_size=size).batches,
                self._objective,
                parts=NUM_PARTS,
            )
        return self._wholes[name]

    @cached_property
    def _effort(self) -> Effort:
        batches = self._run.calibration.batches
        typical = batches[len(batches) // 2]
        positions = positions_per_sequence(self._run.model, typical, self._objective)
        return (BY_TOKEN if positions > 1 else BY_SEQUENCE)[self._run.settings.effort]

    @property
    def _passes(self) -> float:
        """Forward passes over the calibration set so far."""
        computed = sum(one.passes * one.num_sequences for one in self._wholes.values())
        return computed / self._run.calibration.num_samples


class _Folded:
    """Folded candidates, those of the last few choices remembered."""

    def __init__(
        self,
        recipe: Method,
        statistics: Sequence[BlockStatistics],
        candidates: Sequence[Candidates],
    ) -> None:
        self._recipe, self._statistics, self._candidates = recipe, statistics, candidates
        # As much as the dense consumers twice: what is needed now, and before.
        self._free = 2 * sum(one.weight.numel() for one in statistics)
        self._known: OrderedDict[tuple[int, int], FoldedConsumer] = OrderedDict()

    def __call__(self, number: int, index: int) -> FoldedConsumer:
        key = number, index
        if key not in self._known:
            folded = fold_candidate(
                self._recipe, self._statistics[number], self._candidates[number], index
            )
            self._known[key] = dataclasses.replace(folded, weight=folded.weight.float())
            self._free -= folded.weight.numel()
        self._known.move_to_end(key)
        while self._free < 0 and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._free += oldest.weight.numel()
        return self._known[key]
