"""The stages of the pipeline, from a run to a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from stat_prune.attention import TokenClasses
from stat_prune.attention.heads import stream_statistics
from stat_prune.checkpoints.beside import leave_source
from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.checkpoints.outer_models import follow
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.criteria import Candidates, candidates_for, criterion_of
from stat_prune.choosing.folding import fold_all
from stat_prune.choosing.plan import BlockPlan
from stat_prune.families import find_blocks
from stat_prune.machine.distributed import agreed, is_mine, merged, summed, together
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.statistics import BlockStatistics, statistics_of
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import to_cut
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.processors import text_tokenizer
from stat_prune.pipeline.accounting import account, measure, measure_speed
from stat_prune.pipeline.budgeting.sharing import factor_embeddings
from stat_prune.pipeline.budgeting.spreading import spread
from stat_prune.pipeline.reached import check_reached
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.second_pass import HELD_OUT, SecondPass, best_pass, can_move
from stat_prune.reporting.result import PruningResult
from stat_prune.reporting.search_report import DimensionsOfHeads, Search
from stat_prune.settings.methods import Method
from stat_prune.settings.targets import Tolerance
from stat_prune.surgery.alignment import alignment_heads, renumber_alignment_heads
from stat_prune.surgery.config_checks import warn_if_not_plain
from stat_prune.surgery.cut import apply
from stat_prune.surgery.narrowing import NarrowedHeads, narrow


class Decided(NamedTuple):
    """All that is to become of a model, and how that was found."""

    plans: Sequence[BlockPlan]
    second_pass: SecondPass | None = None
    search: Search | None = None
    narrowed: Sequence[NarrowedHeads] = ()
    head_dims: DimensionsOfHeads | None = None


class Searching(Protocol):
    """A search for budgets by what whole pruned models do."""

    def choose(self, budget: Budget) -> tuple[list[int], Search]:
        """The candidate of each block for a budget, and how it was found."""


def collect(run: Run, recipe: Method) -> list[BlockStatistics]:
    """Second moments of every consumer's input, in one pass over the calibration set.

    Products in float32 do where every channel says something of its own; blocks where one does not
    are measured in another pass.
    """
    attention = _attention_of_heads(run) if recipe.heads_only else {}
    statistics = _statistics(run, recipe, run.blocks, run.settings.first_precision)
    if run.settings.precision == "auto":
        again = agreed(lambda: [one.block for one in statistics.values() if one.has_dependence()])
        for block in again:
            del statistics[block.name]  # the memory is needed
        statistics |= _statistics(run, recipe, again, "float64")
    return [
        replace(statistics[block.name], attention=attention.get(block.name)) for block in run.blocks
    ]


def _statistics(
    run: Run, recipe: Method, blocks: Sequence[Block], precision: str
) -> dict[str, BlockStatistics]:
    """Of some blocks, by name; no pass for none."""
    if not blocks:
        return {}
    mine = [batch for number, batch in enumerate(run.calibration.batches) if is_mine(number)]
    with run.stage("collect"):
        moments = together(
            lambda: collect_moments(run.model, blocks, run.tracked(mine), precision=precision)
        )
        moments = summed(moments)
    base = run.model.base_model
    found = statistics_of(base, blocks, moments, absorb_mean=recipe.absorb_mean)
    return {one.block.name: one for one in found}


def _attention_of_heads(run: Run) -> Mapping[str, Mapping[str, torch.Tensor]]:
    """One more pass, for criteria that look at the attention of every head; by block."""
    with run.stage("collect attention"):
        tokenizer = text_tokenizer(run.tokenizer)
        classes = TokenClasses(tokenizer) if tokenizer is not None else None
        # Every process reads all of it, and finds the same.
        return stream_statistics(run.model, run.tracked(run.calibration.batches), classes).values


def decompose(run: Run, recipe: Method, statistics: Sequence[BlockStatistics]) -> list[Candidates]:
    """Rank each block's units; one decomposition prices every size."""

    def of_block(number: int) -> Candidates:
        return candidates_of(run, recipe, statistics[number], number)

    mine = [number for number in range(len(statistics)) if is_mine(number)]
    with run.stage("decompose"):
        return merged(together(lambda: {number: of_block(number) for number in run.tracked(mine)}))


def candidates_of(run: Run, recipe: Method, statistics: BlockStatistics, number: int) -> Candidates:
    """Rank the units of the block with this number among those to be pruned."""
    # A stream of its own for each block, whichever process draws from it.
    own = np.random.SeedSequence([run.settings.seed, number]).generate_state(1)[0]
    return candidates_for(
        statistics,
        criterion_of(recipe),
        corrected=recipe.corrected,
        generator=torch.Generator().manual_seed(int(own)),
        remove=run.settings.removes_blocks,
        needed=alignment_heads(run.model, run.blocks[number]),
    )


def choose_sizes(
    run: Run,
    recipe: Method,
    candidates: Sequence[Candidates],
    weights: Sequence[float] | Sequence[Tensor] | None,
    budget: Budget,
    search: Searching | None = None,
) -> tuple[list[int], Search | None]:
    """Spread the budget: the candidate of each block, and how it was searched for."""
    if search is not None and not isinstance(budget.target, Tolerance):
        return search.choose(budget)
    with run.stage("allocate and time" if budget.timed else "allocate"):
        even = recipe.allocation == "even"
        equal = [1.0] * len(candidates)
        return spread(run, candidates, weights or equal, budget, even=even), None


def plan(
    run: Run,
    recipe: Method,
    statistics: Sequence[BlockStatistics],
    candidates: Sequence[Candidates],
    weights: Sequence[Tensor] | None,
    choice: Sequence[int],
) -> tuple[list[BlockPlan], SecondPass | None]:
    """Fold the correction into each consumer."""
    settings = run.settings
    with run.stage("fold"):
        folded = fold_all(recipe, statistics, candidates, choice, "the correction")
    second = None
    if settings.num_passes > 1 and recipe.corrected and run.calibration.num_samples >= HELD_OUT:
        folded, second = _second_pass(run, folded)
    plans = [
        planned(one, sizes, index, float(weights[position][index]) if weights else None)
        for position, (one, sizes, index) in enumerate(zip(folded, candidates, choice, strict=True))
    ]
    return plans, second


def planned(
    folded: FoldedConsumer, candidates: Candidates, index: int, sensitivity: float | None
) -> BlockPlan:
    """A candidate of a block, folded, with what is known of it."""
    return BlockPlan(
        folded=folded,
        activation_error=float(candidates.activation_errors[index].clamp_min(0)) ** 0.5,
        sensitivity=sensitivity,
        error_curve=candidates.error_curve(),
    )


def _second_pass(
    run: Run, folded: list[FoldedConsumer]
) -> tuple[list[FoldedConsumer], SecondPass | None]:
    """Solve the correction again on the pruned network, where that can change anything."""
    if all(len(one.units) == one.block.num_units or not can_move(one.block) for one in folded):
        return folded, None
    with run.stage("second pass"), gathered_numerical_warnings("the second pass"):
        run.expect(len(folded))
        best, second = agreed(
            lambda: best_pass(
                run.model,
                folded,
                run.calibration,
                objective_named(run.settings.objective),
                seed=run.settings.seed,
                advance=run.advance,
            )
        )
    return best, second


def cut(
    run: Run,
    budget: Budget,
    plans: Sequence[BlockPlan],
    second_pass: SecondPass | None = None,
    search: Search | None = None,
    narrowed: Sequence[NarrowedHeads] = (),
    head_dims: DimensionsOfHeads | None = None,
) -> PruningResult:
    """Cut a copy of the model, and account for it."""
    if not narrowed:  # else the rest of the budget is spent on the next smaller dimensions
        check_reached(run, budget, [_size_of(plan) for plan in plans], uniform=run.settings.uniform)
    before, source = measure(run.model, budget.lengths), run.model.name_or_path or None
    with run.stage("cut"):
        with to_cut(run.model, inplace=run.settings.inplace) as pruned:
            dense = find_blocks(pruned)
            apply(pruned, [plan.folded for plan in plans])
            narrow(pruned, narrowed)
            embeddings = factor_embeddings(run, budget.target, pruned)
            as_pruned_class(pruned)
    if run.settings.uniform:
        warn_if_not_plain(pruned)
    kept = {plan.folded.block.name: plan.folded.units.tolist() for plan in plans}
    renumber_alignment_heads(pruned, dense, kept)
    after, speed = measure(pruned, budget.lengths), measure_speed(run, budget, pruned)
    report = account(run, budget, plans, before, after, speed, second_pass, search, embeddings)
    report = replace(report, head_dims=head_dims)
    leave_source(pruned)
    if run.settings.inplace:
        follow(pruned)
    return PruningResult(
        model=pruned,
        report=report,
        plan=kept,
        tokenizer=run.tokenizer,
        source=source,
    )


def _size_of(plan: BlockPlan) -> tuple[Block, int, int]:
    """A block, with the bias that its consumer is given, and what stays of it."""
    block, units = plan.folded.block, plan.folded.units
    biased = block.consumer_bias or plan.folded.bias is not None
    return replace(block, consumer_bias=biased), len(units), len(block.groups(units))
