"""The stages of the pipeline, from a source to its results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.measured import Measured
from stat_prune.choosing.plan import Sizes
from stat_prune.machine.process_memory import return_freed_memory
from stat_prune.model.factored_table import FactoredTable
from stat_prune.pipeline.accounting import measure, measure_speed, report_of
from stat_prune.pipeline.budgeting.best_share import best_share
from stat_prune.pipeline.budgeting.searching import BudgetSearch
from stat_prune.pipeline.budgeting.sharing import with_table
from stat_prune.pipeline.budgeting.spreading import spread
from stat_prune.pipeline.inside_heads.dims_search import DimsSearch
from stat_prune.pipeline.inside_heads.kept_dims import KeptDims
from stat_prune.pipeline.inside_heads.narrowing_heads import with_head_dims
from stat_prune.pipeline.probes import sensitivities
from stat_prune.pipeline.reached import check_reached
from stat_prune.pipeline.resuming import FinishedWork
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.sources import Decided, Result, Searching, Source
from stat_prune.reporting.search_report import ComparedShares, Search
from stat_prune.surgery.config_checks import warn_if_not_plain


def results_of(
    source: Source[Result], budgets: Sequence[Budget], work: FinishedWork
) -> Iterator[Result]:
    """The model of each budget, one after another; what they have in common is measured once.

    Parameters
    ----------
    source : Source
    budgets : sequence of Budget
        That can be reached.
    work : FinishedWork
        What a run that was broken off has left is not done again.
    """
    run = source.run
    if run.settings.baseline is not None:
        yield from _of_baseline(source, budgets, work)
        return
    kept = KeptDims(run, [budget.target for budget in budgets])
    if not run.blocks:  # targets are of embeddings or of dimensions inside heads alone
        for budget in budgets:
            decided = kept.narrowed(budget, Decided())
            yield _finished(source, budget, source.solve_again(decided, budget))
        return
    measured, search = _measured(source, work)

    def folded(budget: Budget) -> Decided:
        choice, found = work.choice(
            budget.target, partial(choose_sizes, run, measured, budget, search)
        )
        return replace(source.fold(measured, choice), search=found)

    def solved_for(choice: Sequence[int], budget: Budget) -> Decided:
        return source.solve_again(source.fold(measured, choice), budget)

    # Whole models in memory, which layer by layer there are none of.
    whole = search if isinstance(search, BudgetSearch) else None
    inside = None
    if run.settings.head_dims and whole is not None:
        inside = DimsSearch(run, measured, whole)
    for asked in budgets:
        budget, shares = asked, None
        if asked.target.is_joint and search is not None:
            budget, shares = best_share(run, asked, source.shared(search, solved_for))
        if whole is not None:
            whole.cut_from = with_table(run, budget)
        solve_again = partial(source.solve_again, budget=budget)
        decided = kept.narrowed(budget, folded(budget))
        if asked is budgets[-1] and inside is None:
            # Nobody asks again, and statistics are most of what is in memory.
            if whole is not None:
                whole.forget()
            del measured, search, whole
            return_freed_memory()
        best = solve_again(decided)
        if inside is not None:
            fold = partial(source.fold, measured)
            best = with_head_dims(run, budget, best, inside, fold, solve_again)
        yield _finished(source, budget, replace(best, shares=shares))


def _of_baseline(
    source: Source[Result], budgets: Sequence[Budget], work: FinishedWork
) -> Iterator[Result]:
    """The model of each budget, by a method that is a pipeline of its own."""
    run, baseline = source.run, source.run.settings.baseline
    assert baseline is not None
    if run.settings.own_budget:
        for budget in budgets:
            yield _finished(source, budget, Decided.of(baseline.planner(run, budget)))
        return
    # All at once, so that no statistics are left when the method collects its own.
    found = cache(lambda: _searched(source, budgets, work))
    for number, budget in enumerate(budgets):
        decided = Decided.of(
            baseline.planner(run, budget, lambda number=number: found()[number][0])
        )
        # Biases that the method adds come on top: the sizes are of one that adds none.
        own = {block.name: block for block in run.blocks}
        sizes = [(own[block.name], units, groups) for block, units, groups in decided.sizes]
        yield _finished(source, budget, replace(decided, sizes=sizes, search=found()[number][1]))


def _searched(
    source: Source[Any], budgets: Sequence[Budget], work: FinishedWork
) -> list[tuple[Sizes, Search | None]]:
    """The sizes that `Settings.recipe` finds for each budget, and how."""
    measured, search = _measured(source, work)
    found: list[tuple[Sizes, Search | None]] = []
    for budget in budgets:
        choice, how = choose_sizes(source.run, measured, budget, search)
        pairs = zip(measured, choice, strict=True)
        sizes = {one.block.name: one.candidates.size(index)[1:] for one, index in pairs}
        found.append((sizes, how))
    return found


def _measured(source: Source[Any], work: FinishedWork) -> tuple[list[Measured], Searching | None]:
    """What is known of each block, and what compares whole models where they are searched."""
    measured = source.measure()
    weights = work.sensitivities(lambda: sensitivities(source, measured))
    if weights is None:
        return measured, None
    pairs = zip(measured, weights, strict=True)
    measured = [replace(one, weights=weight) for one, weight in pairs]
    searched = source.run.settings.recipe.allocation == "searched"
    return measured, source.search(measured) if searched else None


def choose_sizes(
    run: Run, measured: Sequence[Measured], budget: Budget, search: Searching | None = None
) -> tuple[list[int], Search | None]:
    """Spread the budget: the candidate of each block, and how it was searched for."""
    if search is not None and not budget.target.bounds_error:
        return search.choose(budget)
    with run.stage("allocate and time" if budget.timed else "allocate"):
        even = run.settings.recipe.allocation == "even"
        weights = [1.0 if one.weights is None else one.weights for one in measured]
        return spread(run, measured, weights, budget, even=even), None


def _finished(source: Source[Result], budget: Budget, decided: Decided) -> Result:
    """Cut, and account for it."""
    run, uniform = source.run, source.run.settings.uniform
    # Where dimensions share the budget, the rest of it is spent on the next smaller ones.
    if not decided.narrowed or budget.target.of_dimensions:
        check_reached(run, budget, decided.sizes, uniform=uniform)
    before = measure(run.model, budget.lengths)
    return_freed_memory()
    cut = source.cut(budget, decided)
    if uniform:
        warn_if_not_plain(cut.model)
    report = report_of(
        run,
        budget,
        cut.rows,
        before,
        after=measure(cut.model, budget.lengths),
        speed=measure_speed(run, budget, cut.model),
        second_pass=None if decided.second_pass is None else asdict(decided.second_pass),
        search=decided.search,
        embeddings=_with_shares(cut.embeddings, decided.shares),
        lm_head=_with_shares(cut.lm_head, decided.shares),
        head_dims=decided.head_dims,
        predicted_peak_memory=source.predicted_peak_memory,
    )
    return source.result(budget, cut, report)


def _with_shares(
    table: FactoredTable | None, shares: ComparedShares | None
) -> FactoredTable | None:
    """What a report says of a table, with the shares of a joint budget that were compared."""
    if table is None or shares is None:
        return table
    return replace(table, shares=shares.distances, corrected=shares.corrected)
