"""The pipeline: calibrate, collect, decompose, probe, allocate, fold, cut."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.accounting import account, measure, measure_speed
from stat_prune.budget.choice import check_reachable, choose
from stat_prune.budget.sensitivity import Objective, probe
from stat_prune.checkpoint import as_pruned_class, check_output_directory
from stat_prune.collectors import collect_moments
from stat_prune.correction import fold
from stat_prune.errors import SettingsError
from stat_prune.gathering import gathered_numerical_warnings
from stat_prune.methods import Method, method_named
from stat_prune.peers import PLANNERS
from stat_prune.plan import BlockPlan
from stat_prune.result import PruningResult
from stat_prune.run import Run, starting
from stat_prune.selection import CRITERIA, Candidates, candidates_for
from stat_prune.settings import Settings
from stat_prune.statistics import BlockStatistics, statistics_of
from stat_prune.surgery import apply
from stat_prune.targets import Target

#: Probes measure on at least this many tokens, if the calibration set has them.
MIN_PROBE_TOKENS = 1024


def prune(
    model: PreTrainedModel,
    dataset: Any,
    *,
    target: Target,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: str | Method = "stat",
    num_calibration_samples: int = 512,
    max_seq_length: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str | torch.device | None = None,
    ignore: Iterable[int | str] = (),
    round_to: int = 1,
    uniform: bool = False,
    objective: Objective | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    inplace: bool = False,
    progress: bool = True,
) -> PruningResult:
    """Shrink a trained transformer with a few hundred unlabelled examples; no gradients.

    The model given is left as it is unless `inplace` is true.

    Parameters
    ----------
    model : PreTrainedModel
        BERT, RoBERTa, ELECTRA, DistilBERT, Llama, Mistral, Qwen2 or Qwen3, with any head.
    dataset : object
        Unlabelled examples in any common form: strings, a ``datasets.Dataset`` or its name, a
        ``DataLoader``, a file; see `stat_prune.calibration.build_calibration_set`.
    target : MACs, Parameters, Latency or Tolerance
        The fraction that is *kept*, and of what; ``Speedup(s)`` is ``Latency(1 / s)``.
    tokenizer : PreTrainedTokenizerBase, optional
        The model's own; needed where `dataset` is text, and saved with the result.
    method : str or Method
        ``"stat"`` (default), ``"stat-paper"`` (the authors' recipe), a baseline
        (``"magnitude"``, ``"random"``, ``"id-uncorrected"``, ...), or a `Method`.
    num_calibration_samples : int
        Examples drawn from `dataset`.
    max_seq_length : int, optional
        Tokens that longer examples are cut to. Default: what model and tokenizer take, 512 at most.
    batch_size : int
        Changes nothing beyond rounding.
    seed : int
        Decides which examples are drawn, and which of them probe.
    device : str or torch.device, optional
        Where to compute; the model is moved there and back. Default: where it is.
    ignore : iterable of int or str
        Layers, kinds (``"heads"``) or patterns of block names to leave alone. They still count in
        what a fraction is of.
    round_to : int
        Keep numbers of neurons to multiples of this.
    uniform : bool
        The same sizes in every layer.
    objective : callable, optional
        What the default method measures at the output: ``(dense_output, pruned_output, batch)`` to
        a tensor of distances. Default: `stat_prune.budget.sensitivity.output_distance`.
    output_dir : path, optional
        Save there as well; that it can be made is checked before any work.
    inplace : bool
        Cut the given model itself.
    progress : bool
        Show a progress bar.

    Returns
    -------
    PruningResult
        With ``model``, ``report``, ``plan`` and ``save(directory)``.

    Raises
    ------
    StatPruneError
        A subclass of it for every bad input: `DataError`, `ModelError`, `SettingsError`,
        `UnsupportedArchitectureError`, `TargetError`, `NonFiniteActivationsError`, `SaveError`.
        The model is then as it was.
    """
    if output_dir is not None:
        check_output_directory(output_dir, overwrite=False)
    (result,) = prune_family(
        model,
        dataset,
        targets=[target],
        tokenizer=tokenizer,
        method=method,
        num_calibration_samples=num_calibration_samples,
        max_seq_length=max_seq_length,
        batch_size=batch_size,
        seed=seed,
        device=device,
        ignore=ignore,
        round_to=round_to,
        uniform=uniform,
        objective=objective,
        inplace=inplace,
        progress=progress,
    )
    if output_dir is not None:
        result.save(output_dir)
    return result


def prune_family(
    model: PreTrainedModel,
    dataset: Any,
    *,
    targets: Sequence[Target],
    tokenizer: PreTrainedTokenizerBase | None = None,
    **settings: Any,
) -> list[PruningResult]:
    """Models of several sizes from one collection, one decomposition and one round of probes.

    Parameters
    ----------
    model, dataset, tokenizer
        As for `prune`.
    targets : sequence of MACs, Parameters, Latency or Tolerance
        One a model.
    **settings
        The other arguments of `prune`, but for ``output_dir``.

    Returns
    -------
    list of PruningResult
        In the order of `targets`; the time of the shared stages is in each report.
    """
    chosen = Settings(**settings)
    if chosen.inplace and len(targets) > 1:
        raise SettingsError(f"inplace=True makes one model, but {len(targets)} targets were given.")
    with starting(model, dataset, tokenizer, chosen) as run:
        for target in targets:
            check_reachable(
                run.blocks,
                run.untouched,
                target,
                seq_length=run.seq_length(target),
                round_to=chosen.round_to,
                timed=run.timed(target),
            )
        if chosen.method in PLANNERS:
            planner = PLANNERS[chosen.method]
            return [_finish(run, target, planner(run, target)) for target in targets]
        recipe = method_named(chosen.method)
        statistics = _collect(run, recipe)
        candidates = _decompose(run, recipe, statistics)
        weights = _probe(run, recipe, statistics, candidates)
        return [
            _finish(run, target, _plan(run, recipe, statistics, candidates, weights, target))
            for target in targets
        ]


def _collect(run: Run, recipe: Method) -> list[BlockStatistics]:
    """One pass over the calibration set: second moments of every consumer's input."""
    with run.stage("collect"):
        moments = collect_moments(run.model, run.blocks, run.tracked(run.calibration.batches))
    return statistics_of(run.model.base_model, run.blocks, moments, absorb_mean=recipe.absorb_mean)


def _decompose(run: Run, recipe: Method, statistics: Sequence[BlockStatistics]) -> list[Candidates]:
    """Rank each block's units; one decomposition prices every size."""
    generator = torch.Generator().manual_seed(run.settings.seed)
    criterion = CRITERIA[recipe.criterion]
    with run.stage("decompose"):
        return [
            candidates_for(one, criterion, corrected=recipe.corrected, generator=generator)
            for one in run.tracked(statistics)
        ]


def _probe(
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
                fold(one, sizes.units(sizes.to_probe()), corrected=recipe.corrected)
                for one, sizes in zip(statistics, candidates, strict=True)
            ]
        batches = run.probe_batches(MIN_PROBE_TOKENS)
        run.expect(len(batches) * len(probes))
        distances = probe(
            run.model,
            probes,
            batches,
            objective=run.settings.objective,
            advance=run.advance,
        )
    return [
        distance / max(folded.output_error**2, 1e-30)
        for distance, folded in zip(distances, probes, strict=True)
    ]


def _plan(
    run: Run,
    recipe: Method,
    statistics: Sequence[BlockStatistics],
    candidates: Sequence[Candidates],
    weights: Sequence[float] | None,
    target: Target,
) -> list[BlockPlan]:
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
                fold(one, sizes.units(index), corrected=recipe.corrected)
                for one, sizes, index in zip(statistics, candidates, choice, strict=True)
            ]
    return [
        BlockPlan(
            folded=one,
            activation_error=float(sizes.activation_errors[index].clamp_min(0)) ** 0.5,
            sensitivity=weights[position] if weights else None,
        )
        for position, (one, sizes, index) in enumerate(zip(folded, candidates, choice, strict=True))
    ]


def _finish(run: Run, target: Target, plans: Sequence[BlockPlan]) -> PruningResult:
    """Cut a copy of the model, and account for it."""
    before = measure(run.model, run.seq_length(target))
    with run.stage("cut"):
        pruned = run.model if run.settings.inplace else copy.deepcopy(run.model)
        apply(pruned, [plan.folded for plan in plans])
        as_pruned_class(pruned)
    after, speed = measure(pruned, run.seq_length(target)), measure_speed(run, target, pruned)
    return PruningResult(
        model=pruned,
        report=account(run, target, plans, before, after, speed),
        plan={plan.folded.block.name: plan.folded.units.tolist() for plan in plans},
        tokenizer=run.tokenizer,
    )
