"""The second walk: whole pruned models are compared, a layer of each at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from stat_prune.choosing.budget.costs import Budget, Share
from stat_prune.choosing.budget.whole_model import (
    GivesUp,
    Measurement,
    size_of_part,
)
from stat_prune.choosing.measured import Measured, weights_of
from stat_prune.data.calibration import CalibrationSet
from stat_prune.pipeline.budgeting.best_share import STAGE as SHARING
from stat_prune.pipeline.budgeting.efforts import NUM_PARTS, Trials
from stat_prune.pipeline.budgeting.searching import LEVELS
from stat_prune.pipeline.budgeting.spreading import spread
from stat_prune.pipeline.budgeting.starts import (
    nearest,
    spread_starts,
    starts_of,
)
from stat_prune.pipeline.on_disk.embedding import tables_in_memory
from stat_prune.pipeline.on_disk.layer_pass import LayerPass
from stat_prune.pipeline.on_disk.variants import Variant, VariantPass
from stat_prune.pipeline.solving_again.second_pass import with_held_out
from stat_prune.pipeline.sources import FirstStart
from stat_prune.reporting.search_report import Search

_STAGE = "search the budget"

#: The piece of work with the distances, and those where a budget is shared out.
_COMPARED, _SHARED = "compared", "shared"


class Comparison:
    """Compares starts as `BudgetSearch` (`pipeline.budgeting.searching`) does with least effort.

    All go through the layers together, beside the dense model (`VariantPass`). What decides is
    asked afterwards.

    Parameters
    ----------
    walk : LayerPass
        That has measured every block.
    measured : sequence of Measured
        With weights.
    """

    def __init__(self, walk: LayerPass, measured: Sequence[Measured]) -> None:
        self.walk, self.run, self.measured = walk, walk.run, measured
        self._trials = Trials.of(walk.run, walk.positions_per_sequence())
        self._num_shared = 0

    @contextmanager
    def tables(self) -> Iterator[None]:
        """Embeddings and head can be decomposed inside."""
        with self.run.stage(SHARING), tables_in_memory(self.walk.checkpoint, self.run):
            yield

    def first_starts(self, budgets: Sequence[Budget]) -> FirstStart:
        """How far the first start for each of some budgets is: all are measured on one walk."""
        start = starts_of(weights_of(self.measured), self.run.settings)[0]
        choices = [
            spread(self.run, self.measured, start.weights, one, levels=LEVELS) for one in budgets
        ]
        found = self._distances(budgets, choices, self._trials.sequences())
        shares = [one.share for one in budgets]
        known = dict(zip(shares, zip(found, choices, strict=True), strict=True))
        return lambda budget: known[budget.share]

    def corrected(self, budget: Budget, choices: Sequence[tuple[Share, list[int]]]) -> list[float]:
        """How far models of some shares are, on what second passes in memory are judged on.

        The correction of a block is solved on its own inputs in the dense model here.
        """
        budgets = [replace(budget, share=share) for share, _ in choices]
        _, judges = with_held_out(self.run.calibration, seed=self.run.settings.seed)
        return self._distances(budgets, [choice for _, choice in choices], judges)

    def _distances(
        self, budgets: Sequence[Budget], choices: Sequence[Sequence[int]], texts: CalibrationSet
    ) -> list[float]:
        """Of one choice for each budget, on a walk of their own."""
        if not budgets:
            return []
        variants = [*map(Variant, map(tuple, choices), budgets)]
        name = f"{_SHARED}-{self._num_shared}"
        self._num_shared += 1
        walk = VariantPass(name, SHARING, self.walk, self.measured, texts, variants)
        return [float(one.mean()) for one in walk.by_sequence()]

    def choose(self, budget: Budget) -> tuple[list[int], Search]:
        """The candidate of each block for a budget, and how it was found."""
        run = self.run
        starts = starts_of(weights_of(self.measured), run.settings)
        spreads = spread_starts(run, self.measured, starts, budget)
        choices = list(dict.fromkeys(tuple(choice) for _, choice in spreads))
        sequences = self._trials.sequences()
        count = sequences.num_samples
        variants = [Variant(choice, budget) for choice in choices]
        walk = VariantPass(_COMPARED, _STAGE, self.walk, self.measured, sequences, variants)
        compared = Compared(dict(zip(choices, walk.by_sequence(), strict=True)), NUM_PARTS)
        best, found = nearest(spreads, compared, errors=self._trials.errors)
        return next(choice for one, choice in spreads if one is best), Search(
            effort=run.settings.effort,
            sequences=count,
            starts=found,
            rounds=[],
            held_out={},
            held_out_sequences=0,
            taken=best.name,
            passes=(1 + len(choices)) * count / run.calibration.num_samples,
            start=best.name,
            given_up=[one.name for one in starts if one.name not in found],
        )


class Compared:
    """Answers as a `WholeModel` (`choosing.budget.whole_model`) would that has measured before.

    Parameters
    ----------
    by_sequence : mapping of tuple of int to Tensor of shape (n,), float64
        By choice.
    parts : int
        Of the sequences; after each but the last a choice may be given up.
    """

    def __init__(self, by_sequence: Mapping[tuple[int, ...], Tensor], parts: int) -> None:
        self._by_sequence, self._parts = by_sequence, parts

    def measure(self, choice: Sequence[int]) -> Measurement:
        """The distance of a choice."""
        return Measurement(tuple(choice), self._by_sequence[tuple(choice)], {})

    def measure_beside(
        self, choice: Sequence[int], current: Measurement, gives_up: GivesUp
    ) -> Measurement | None:
        """The distance of a choice, or None where it would have been given up."""
        found = self.measure(choice)
        count = len(found.by_sequence)
        size = size_of_part(count, self._parts)
        for end in range(size, count, size):
            if gives_up(found.by_sequence[:end], current.by_sequence[:end]):
                return None
        return found
