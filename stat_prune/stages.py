"""The stages of the pipeline, from a run to a result."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from stat_prune.accounting import account, measure, measure_speed
from stat_prune.budget.choice import choose
from stat_prune.budget.sensitivity import output_distance, positions_per_sequence, probe
from stat_prune.checkpoint import as_pruned_class
from stat_prune.collectors import collect_moments
from stat_prune.correction import FoldedConsumer, fold
from stat_prune.gathering import gathered_numerical_warnings
from stat_prune.methods import Method
from stat_prune.plan import BlockPlan
from stat_prune.probing import TokenClasses
from stat_prune.probing.heads import stream_statistics
from stat_prune.restreaming import HELD_OUT, RIDGES, SecondPass, best_pass
from stat_prune.result import PruningResult
from stat_prune.run import Run
from stat_prune.selection import CRITERIA, Candidates, candidates_for
from stat_prune.statistics import BlockStatistics, statistics_of
from stat_prune.surgery import apply
from stat_prune.targets import Target


def collect(run: Run, recipe: Method) -> list[BlockStatistics]:
    """One pass over the calibration set: second moments of every consumer's input.

    And, where the criterion looks at it, another that sees the attention of every head.
    """
    with run.stage("collect"):
        moments = collect_moments(run.model, run.blocks, run.tracked(run.calibration.batches))
    statistics = statistics_of(
        run.model.base_model, run.blocks, moments, absorb_mean=recipe.absorb_mean
    )
    if not recipe.heads_only:
        return statistics
    with run.stage("collect attention"):
        classes = TokenClasses(run.tokenizer) if run.tokenizer is not None else None
        heads = stream_statistics(run.model, run.tracked(run.calibration.batches), classes)
    return [replace(one, attention=heads.values[one.block.name]) for one in statistics]


def decompose(run: Run, recipe: Method, statistics: Sequence[BlockStatistics]) -> list[Candidates]:
    """Rank each block's units; one decomposition prices every size."""
    generator = torch.Generator().manual_seed(run.settings.seed)
    criterion = CRITERIA[recipe.criterion]
    with run.stage("decompose"):
        return [
            candidates_for(one, criterion, corrected=recipe.corrected, generator=generator)
            for one in run.tracked(statistics)
        ]


def sensitivities(
    run: Run,
    recipe: Method,
    statistics: Sequence[BlockStatistics],
    candidates: Sequence[Candidates],
) -> list[float] | None:
    """Effect on the model's output for each unit of a block's own squared error.

    Each block is pruned alone to about half its size; what that does to the output is divided by
    the block's own error there.
    """
    if recipe.allocation != "probed":
        return None
    with run.stage("probe"):
        with gathered_numerical_warnings("folding the probes"):
            probes = [
                _fold(recipe, one, sizes, sizes.to_probe())
                for one, sizes in zip(statistics, candidates, strict=True)
            ]
        objective = run.settings.objective or output_distance
        typical = run.calibration.batches[len(run.calibration.batches) // 2]
        batches = run.probe_batches(positions_per_sequence(run.model, typical, objective))
        run.expect(len(batches) * len(probes))
        distances = probe(
            run.model,
            probes,
            batches,
            objective=objective,
            advance=run.advance,
        )
    return [
        distance / max(folded.output_error**2, 1e-30)
        for distance, folded in zip(distances, probes, strict=True)
    ]


def plan(
    run: Run,
    recipe: Method,
    statistics: Sequence[BlockStatistics],
    candidates: Sequence[Candidates],
    weights: Sequence[float] | None,
    target: Target,
) -> tuple[list[BlockPlan], SecondPass | None]:
    """Spread the budget, and fold the correction into each consumer."""
    settings, timed = run.settings, run.timed(target)
    with run.stage("allocate, time and fold" if timed else "allocate and fold"):
        choice = choose(
            candidates,
            weights or [1.0] * len(candidates),
            target,
            seq_length=run.seq_length(target),
            untouched=run.untouched,
            round_to=settings.round_to,
            uniform=settings.uniform,
            even=recipe.allocation == "even",
            timed=timed,
        )
        with gathered_numerical_warnings("folding the correction"):
            folded = [
                _fold(recipe, one, sizes, index)
                for one, sizes, index in zip(statistics, candidates, choice, strict=True)
            ]
    second = None
    passes = settings.passes or recipe.passes
    if passes > 1 and recipe.corrected and run.calibration.num_samples >= HELD_OUT:
        folded, second = _second_pass(run, folded)
    plans = [
        BlockPlan(
            folded=one,
            activation_error=float(sizes.activation_errors[index].clamp_min(0)) ** 0.5,
            sensitivity=weights[position] if weights else None,
            error_curve=sizes.error_curve(),
        )
        for position, (one, sizes, index) in enumerate(zip(folded, candidates, choice, strict=True))
    ]
    return plans, second


def _second_pass(
    run: Run, folded: list[FoldedConsumer]
) -> tuple[list[FoldedConsumer], SecondPass | None]:
    """Solve the correction again on the pruned network, where anything is pruned."""
    if all(len(one.units) == one.block.num_units for one in folded):
        return folded, None
    with run.stage("second pass"), gathered_numerical_warnings("the second pass"):
        run.expect(len(RIDGES) * len(folded))
        best, second = best_pass(
            run.model,
            folded,
            run.calibration,
            run.settings.objective or output_distance,
            seed=run.settings.seed,
            advance=run.advance,
        )
        tried = len(second.distances) - 1
        run.expect((tried - len(RIDGES)) * len(folded))
    return best, second


def _fold(
    recipe: Method, statistics: BlockStatistics, candidates: Candidates, index: int
) -> FoldedConsumer:
    """Fold one candidate; after the correction its error is what the decomposition said."""
    known = float(candidates.output_errors[index].clamp_min(0)) ** 0.5 if recipe.corrected else None
    return fold(statistics, candidates.units(index), corrected=recipe.corrected, output_error=known)


def finish(
    run: Run, target: Target, plans: Sequence[BlockPlan], second_pass: SecondPass | None = None
) -> PruningResult:
    """Cut a copy of the model, and account for it."""
    before = measure(run.model, run.seq_length(target))
    with run.stage("cut"):
        pruned = run.model if run.settings.inplace else copy.deepcopy(run.model)
        apply(pruned, [plan.folded for plan in plans])
        as_pruned_class(pruned)
    after, speed = measure(pruned, run.seq_length(target)), measure_speed(run, target, pruned)
    return PruningResult(
        model=pruned,
        report=account(run, target, plans, before, after, speed, second_pass),
        plan={plan.folded.block.name: plan.folded.units.tolist() for plan in plans},
        tokenizer=run.tokenizer,
    )
