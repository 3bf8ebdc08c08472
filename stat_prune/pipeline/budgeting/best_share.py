"""Which way to share out one budget changes the output of the model least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

from stat_prune.choosing.budget.costs import Budget, Share
from stat_prune.machine.distributed import broadcast
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import distance
from stat_prune.pipeline.budgeting.searching import BudgetSearch
from stat_prune.pipeline.budgeting.sharing import Shares, with_table
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.solving_again.second_pass import with_held_out
from stat_prune.pipeline.sources import ComparesShares, Decided, FirstStart
from stat_prune.reporting.search_report import ComparedShares

#: Ways to share a budget out that the correction is solved for.
NUM_CORRECTED = 3

#: So many in a row that are further from the dense model than the nearest end the trials: the less
#: of the embeddings, the more of the blocks, and the best lies between.
WORSE = 2

#: Of a run, in which shares are compared.
STAGE = "share the budget"


class _Tried(NamedTuple):
    """A share, how far the first start of the search for it is, and what that keeps."""

    share: Share
    distance: float
    choice: list[int]


class InMemory:
    """Compares shares on whole models in memory.

    Parameters
    ----------
    run : Run
    search : BudgetSearch
    fold : callable
        From candidates to their correction, on the model with factored embeddings.
    """

    def __init__(
        self,
        run: Run,
        search: BudgetSearch,
        fold: Callable[[Sequence[int], Budget], Decided],
    ) -> None:
        self._run, self._search, self._fold = run, search, fold

    def tables(self) -> AbstractContextManager[None]:
        """They are in memory, and so is the stage that they belong to."""
        return self._run.stage(STAGE)

    def first_starts(self, budgets: Sequence[Budget]) -> FirstStart:
        """Measured where it is asked for."""

        def ask(budget: Budget) -> tuple[float, list[int]]:
            with self._run.stage(STAGE):
                self._search.cut_from = with_table(self._run, budget)
                return self._search.foreseen(budget)

        return ask

    def corrected(self, budget: Budget, choices: Sequence[tuple[Share, list[int]]]) -> list[float]:
        """Of models whose correction is solved on the one with factored embeddings."""
        found = []
        for share, choice in choices:
            shared = replace(budget, share=share)
            decided = self._fold(choice, shared)
            with self._run.stage(STAGE):
                found.append(_held_out_distance(self._run, shared, decided))
        return found


def best_share(run: Run, budget: Budget, measured: ComparesShares) -> tuple[Budget, ComparedShares]:
    """The way to share out a joint budget that changes the output least, and what it was best of.

    Models with factored embeddings and pruned blocks are measured at the first start of the search
    for the blocks' budget; where a head has weights of its own, with as much of it as of the
    embeddings, and then with more and with less. The correction makes up for some of what the
    factors do, more where they are smaller: for the nearest few it is solved, and they are compared
    on sequences that it was not solved on.
    """
    with measured.tables():
        shares = Shares(run, budget)
    tried = _until_worse(run, budget, measured, [shares.first])
    nearest = tried[_nearest(tried)].share
    with measured.tables():
        others = shares.other_heads(nearest)
    less = [one for one in others if one.of_head < nearest.of_head]
    more = [one for one in reversed(others) if one.of_head > nearest.of_head]
    tried += _until_worse(run, budget, measured, [less, more])
    order = broadcast(lambda: sorted(range(len(tried)), key=lambda at: tried[at].distance))
    contenders = [tried[at] for at in order[:NUM_CORRECTED]]
    known = measured.corrected(budget, [(one.share, one.choice) for one in contenders])
    corrected = {str(one.share): far for one, far in zip(contenders, known, strict=True)}
    best = broadcast(lambda: min(contenders, key=lambda one: corrected[str(one.share)]).share)
    distances = {str(one.share): one.distance for one in tried}
    return replace(budget, share=best), ComparedShares(distances, corrected)


def _until_worse(
    run: Run, budget: Budget, measured: ComparesShares, sides: Sequence[Sequence[Share]]
) -> list[_Tried]:
    """Shares of each side, up to a few that are further from the dense model than its nearest."""
    budgets = [[replace(budget, share=share) for share in side] for side in sides]
    ask = measured.first_starts([one for side in budgets for one in side])
    found: list[_Tried] = []
    for side, shared in zip(sides, budgets, strict=True):
        tried: list[_Tried] = []
        for share, one in run.tracked([*zip(side, shared, strict=True)]):
            if len(tried) - 1 - _nearest(tried) >= WORSE:
                break
            tried.append(_Tried(share, *ask(one)))
        found += tried
    return found


def _nearest(tried: Sequence[_Tried]) -> int:
    """The number of the nearest, on all processes; -1 of none."""
    return broadcast(lambda: min(range(len(tried)), key=lambda at: tried[at].distance, default=-1))


def _held_out_distance(run: Run, budget: Budget, decided: Decided) -> float:
    """Of a model that is cut so, on what the correction was not solved on."""
    if decided.held_out is not None:
        return decided.held_out
    _, judges = with_held_out(run.calibration, seed=run.settings.seed)
    cut = decided.solution.cut_copy(with_table(run, budget))
    return distance(run.model, cut, judges.batches, objective_named(run.settings.objective))
