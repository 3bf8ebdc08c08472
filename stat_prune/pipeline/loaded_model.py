"""A model in memory, as a source of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from stat_prune.attention import TokenClasses
from stat_prune.attention.heads import stream_statistics
from stat_prune.checkpoints.beside import leave_source
from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.checkpoints.outer_models import follow
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.folding import fold_all
from stat_prune.choosing.measured import Measured
from stat_prune.choosing.plan import BlockPlan
from stat_prune.data.calibration import CalibrationSet
from stat_prune.errors import TargetError
from stat_prune.families import find_blocks
from stat_prune.machine.distributed import barrier, broadcast, gather, is_mine, summed
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import positions_per_sequence
from stat_prune.measuring.statistics import BlockStatistics, statistics_of
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import to_cut
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.ignoring import without_ignored
from stat_prune.model.processors import text_tokenizer
from stat_prune.model.running import Batch
from stat_prune.pipeline.accounting import row_of
from stat_prune.pipeline.budgeting.best_share import InMemory
from stat_prune.pipeline.budgeting.efforts import Trials
from stat_prune.pipeline.budgeting.searching import BudgetSearch
from stat_prune.pipeline.budgeting.sharing import factor_as, with_table
from stat_prune.pipeline.one_block import candidates_of, planned
from stat_prune.pipeline.probes import distances
from stat_prune.pipeline.resuming import FinishedWork
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.solving_again.second_pass import (
    HELD_OUT,
    MOST_STATES,
    best_pass,
    states_of_token,
)
from stat_prune.pipeline.sources import CutModel, Decided, Probed, Searching
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.result import PruningResult
from stat_prune.surgery.alignment import renumber_alignment_heads
from stat_prune.surgery.cut import apply, whole_consumer
from stat_prune.surgery.linear_layers import check_readings, correct_readers
from stat_prune.surgery.narrowing import narrow


class LoadedModel:
    """A model in memory: statistics stay there, and what is cut is a copy.

    Parameters
    ----------
    run : Run
    work : FinishedWork
        With statistics that need not be collected again.
    """

    predicted_peak_memory = None

    def __init__(self, run: Run, work: FinishedWork) -> None:
        self.run, self._work = run, work
        self._origin = run.model.name_or_path or None

    def measure(self) -> list[Measured]:
        """Statistics and sizes of each block."""
        statistics = self._work.statistics(lambda: collect(self.run))
        return decompose(self.run, statistics)

    def probe(self, measured: Sequence[Measured], choice: Sequence[int]) -> list[Probed]:
        """What each of some blocks does, pruned alone to a candidate."""
        with self.run.stage("probe"):
            batches = self._probe_batches
            folded = fold_all(self.run.settings.recipe, measured, choice, "the probes")
            pairs = zip(distances(self.run, folded, batches), folded, strict=True)
            return [Probed(distance, one.output_error) for distance, one in pairs]

    @cached_property
    def _probe_batches(self) -> list[Batch]:
        return self.run.probe_batches(self._positions)

    @cached_property
    def _positions(self) -> float:
        """How many values the objective has for a typical sequence."""
        run = self.run
        typical = run.calibration.batches[len(run.calibration.batches) // 2]
        objective = objective_named(run.settings.objective)
        return positions_per_sequence(run.model, typical, objective)

    def search(self, measured: Sequence[Measured]) -> BudgetSearch:
        """What compares whole pruned models."""
        return BudgetSearch(self.run, measured, Trials.of(self.run, self._positions))

    def shared(
        self, search: Searching, fold: Callable[[Sequence[int], Budget], Decided]
    ) -> InMemory:
        """What compares shares of a joint budget."""
        assert isinstance(search, BudgetSearch)
        return InMemory(self.run, search, fold)

    def fold(self, measured: Sequence[Measured], choice: Sequence[int]) -> Decided:
        """The correction of each block's candidate."""
        run = self.run
        with run.stage("fold"):
            folded = fold_all(run.settings.recipe, measured, choice, "the correction")
        pairs = zip(folded, measured, choice, strict=True)
        return Decided.of([planned(*one) for one in pairs])

    def solve_again(self, decided: Decided, budget: Budget) -> Decided:
        """The same with the correction solved on the pruned model, where that is wanted.

        Where nobody says how often, that is where a search is not to be fast, and with factored
        embeddings, as what they do to all blocks is known on the second pass alone.
        """
        run = self.run
        for_table = budget.factors and run.settings.passes is None
        wanted = run.settings.tries_second_pass or for_table
        enough = run.calibration.num_samples >= HELD_OUT
        if not (wanted and run.settings.recipe.corrected and enough):
            return decided
        plans = decided.plans or _whole(run)
        first, cut_from = replace(decided, plans=plans).solution, with_table(run, budget)
        folded = first.folded
        changed = decided.narrowed or cut_from is not run.model
        cut = changed or any(len(one.units) < one.block.num_units for one in folded)
        if not (folded and cut):
            return decided
        asked = run.settings.num_passes > 1
        calibration = run.calibration if asked else _affordable(run, folded)
        with run.stage("second pass"), gathered_numerical_warnings("the second pass"):
            run.expect(len(folded))
            solution, second = broadcast(
                lambda: best_pass(
                    run.model,
                    first,
                    calibration,
                    objective_named(run.settings.objective),
                    seed=run.settings.seed,
                    cut_from=cut_from,
                    advance=run.advance,
                )
            )
        whole = calibration is run.calibration or calibration.held_out is not None
        held_out = second.distance if whole else None
        solved = replace(decided, plans=plans).with_solution(solution)
        return replace(solved, second_pass=second, held_out=held_out)

    def cut(self, budget: Budget, decided: Decided) -> CutModel:
        """Smaller layers in place of the dense ones, in a copy that shares the others."""
        run, plans = self.run, decided.plans
        asked = {block.name for block in run.blocks}
        with run.stage("cut"):
            with to_cut(run.model, inplace=run.settings.inplace) as pruned:
                dense = find_blocks(pruned)
                check_readings(pruned, decided.head)
                apply(pruned, [plan.folded for plan in plans])
                narrow(pruned, decided.narrowed)
                correct_readers(pruned, decided.head)
                embeddings, head = factor_as(run, budget, pruned)
                as_pruned_class(pruned)
        kept = {plan.folded.block.name: plan.folded.units.tolist() for plan in plans}
        renumber_alignment_heads(pruned, dense, kept)
        rows = [row_of(plan) for plan in plans if plan.folded.block.name in asked]
        return CutModel(pruned, rows, kept, embeddings, head)

    def result(self, budget: Budget, cut: CutModel, report: PruningReport) -> PruningResult:
        """The model and the account of it."""
        leave_source(cut.model)
        if self.run.settings.inplace:
            follow(cut.model)
        return PruningResult(
            model=cut.model,
            report=report,
            plan=cut.units,
            tokenizer=self.run.tokenizer,
            source=self._origin,
            run=self._work.fingerprint(budget.target),
        )


def collect(run: Run) -> list[BlockStatistics]:
    """Second moments of every consumer's input, in one pass over the calibration set.

    Products in float32 do where every channel says something of its own; blocks where one does not
    are measured in another pass.
    """
    recipe = run.settings.recipe
    attention = _attention_of_heads(run) if recipe.heads_only else {}
    statistics = _statistics(run, run.blocks, run.settings.first_precision)
    if run.settings.precision == "auto":
        again = broadcast(
            lambda: [one.block for one in statistics.values() if one.has_dependence()]
        )
        for block in again:
            del statistics[block.name]  # the memory is needed
        statistics |= _statistics(run, again, "float64")
    return [
        replace(statistics[block.name], attention=attention.get(block.name)) for block in run.blocks
    ]


def _statistics(run: Run, blocks: Sequence[Block], precision: str) -> dict[str, BlockStatistics]:
    """Of some blocks, by name; no pass for none."""
    if not blocks:
        return {}
    mine = [batch for number, batch in enumerate(run.calibration.batches) if is_mine(number)]
    with run.stage("collect"):
        moments = barrier(
            lambda: collect_moments(run.model, blocks, run.tracked(mine), precision=precision)
        )
        moments = summed(moments)
    base, centred = run.model.base_model, run.settings.recipe.absorb_mean
    found = statistics_of(base, blocks, moments, absorb_mean=centred)
    return {one.block.name: one for one in found}


def _attention_of_heads(run: Run) -> Mapping[str, Mapping[str, torch.Tensor]]:
    """One more pass, for criteria that look at the attention of every head; by block."""
    with run.stage("collect attention"):
        tokenizer = text_tokenizer(run.tokenizer)
        classes = TokenClasses(tokenizer) if tokenizer is not None else None
        # Every process reads all of it, and finds the same.
        return stream_statistics(run.model, run.tracked(run.calibration.batches), classes).values


def decompose(run: Run, statistics: Sequence[BlockStatistics]) -> list[Measured]:
    """Rank each block's units; one decomposition prices every size."""
    mine = [number for number in range(len(statistics)) if is_mine(number)]
    with run.stage("decompose"):
        candidates = gather(
            barrier(lambda: {n: candidates_of(run, statistics[n], n) for n in run.tracked(mine)})
        )
    pairs = zip(candidates, statistics, strict=True)
    return [Measured(sizes, one.output_energy, one) for sizes, one in pairs]


def _whole(run: Run) -> list[BlockPlan]:
    """Blocks of which nothing leaves, where that is of embeddings or of dimensions of heads alone.

    But for those that the user wants left alone.
    """
    try:
        blocks, _ = without_ignored(find_blocks(run.model), run.settings.ignored)
    except TargetError:  # all of them
        return []
    return [BlockPlan(whole_consumer(run.model, block), activation_error=0.0) for block in blocks]


def _affordable(run: Run, folded: Sequence[FoldedConsumer]) -> CalibrationSet:
    """As many calibration sequences as a second pass nobody asked for may hold the states of."""
    calibration = run.calibration
    states = states_of_token([one.block for one in folded])
    part = MOST_STATES / (states * calibration.num_tokens)
    if part >= 1:
        return calibration
    count = max(int(part * calibration.num_samples), HELD_OUT)
    fewer = calibration.subset(count, seed=run.settings.seed)
    return replace(fewer, held_out=calibration.held_out)
