"""The one call: calibrate, collect, decompose, probe, allocate and fold, cut."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.pretrained import given_tokenizer
from stat_prune.choosing.budget.costs import Budget
from stat_prune.errors import CalibrationWarning, SettingsError, TargetError
from stat_prune.finishing import Finishing, with_finish
from stat_prune.measuring.sentence_embeddings import SentenceEmbeddings
from stat_prune.model.running import Objective
from stat_prune.model.whole_encoders import encoder_kind, transformer_of
from stat_prune.pipeline.budgeting.budgets import check_budget, resolve
from stat_prune.pipeline.budgeting.searching import BudgetSearch
from stat_prune.pipeline.budgeting.sharing import best_share
from stat_prune.pipeline.inside_heads.narrowing_heads import check_narrowing, with_head_dims
from stat_prune.pipeline.method_requirements import check_no_experts
from stat_prune.pipeline.probes import check_objective, sensitivities
from stat_prune.pipeline.resuming import FinishedWork
from stat_prune.pipeline.run import Run, starting
from stat_prune.pipeline.saving import Output
from stat_prune.pipeline.second_pass import HELD_OUT, can_move
from stat_prune.pipeline.stages import Decided, choose_sizes, collect, cut, decompose, plan
from stat_prune.reporting.result import PruningResult
from stat_prune.settings.arguments import check_path, flag
from stat_prune.settings.methods import Allocation, Baseline, Method
from stat_prune.settings.settings import MASK_FRACTION, Settings
from stat_prune.settings.targets import Target, checked_target


def prune(
    model: PreTrainedModel | nn.Module,
    dataset: Any,
    *,
    target: Target,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    method: str | Method | Baseline = "stat",
    num_calibration_samples: int = 512,
    max_seq_length: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    mask_fraction: float = MASK_FRACTION,
    device: str | torch.device | None = None,
    ignore: Iterable[int | str] = (),
    round_to: int = 1,
    uniform: bool = False,
    remove_blocks: bool = False,
    head_dims: bool = False,
    objective: str | Objective | None = None,
    effort: str = "normal",
    budget: Allocation | None = None,
    passes: int | None = None,
    precision: str = "auto",
    finish: str | None = None,
    serve_with: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    inplace: bool = False,
    progress: bool = True,
) -> PruningResult:
    """Shrink a trained transformer with a few hundred unlabelled examples; no gradients.

    The model given is left as it is unless `inplace` is true, and can be used meanwhile, in other
    threads too: the run works on a copy that shares its weights.

    Parameters
    ----------
    model : PreTrainedModel
        Of a supported family, with any head; docs/architectures.md lists them. Of another family
        that reads text, blocks are inferred and proven first (`infer_architecture`), or described
        by you (`register_architecture`). One that accelerate has dispatched (``device_map``) is
        pruned where its hooks compute, and the result is dispatched in the same way. Or a
        ``SentenceTransformer``, ``CrossEncoder`` or ``SparseEncoder``: its transformer is pruned,
        what is behind that stays, and the result is one of the same class.
    dataset : object
        Unlabelled examples in any common form: strings, a ``datasets.Dataset`` or its name, a
        ``DataLoader``, a file; see `stat_prune.data.calibration.build_calibration_set`.
    target : MACs, Parameters, Latency or Tolerance
        The fraction that is *kept*, and of what; ``Speedup(s)`` is ``Latency(1 / s)``.
    tokenizer : PreTrainedTokenizerBase or path, optional
        The model's own, or where it can be loaded from, or a processor, feature extractor or image
        processor; a tokenizer is needed where `dataset` is text. It is saved with the result.
        Models of sentence-transformers have their own.
    method : str or Method
        ``"stat"`` (default), ``"stat-paper"`` (the authors' recipe), a baseline
        (``"magnitude"``, ``"random"``, ``"id-uncorrected"``, ...), a criterion for heads alone
        (``"attention-entropy"``, ..., with ``target=MACs({"heads": 0.5})``), a published method
        (``"fisher"``, ``"kprune"``, ``"kcm"``, ...; `stat_prune.baselines`), or a `Method`.
    num_calibration_samples : int
        Examples drawn from `dataset`. Where the budget is searched for, an eighth as many are drawn
        besides and held out; where there are no more, a ninth of these is.
    max_seq_length : int, optional
        Tokens that longer examples are cut to. Default: what model and tokenizer take, 512 at most.
    batch_size : int
        Changes nothing beyond rounding.
    seed : int
        Decides which examples are drawn, which of them probe, and which tokens are masked.
    mask_fraction : float
        Of the tokens, replaced by the tokenizer's mask where the model has a head for masked tokens
        (``...ForMaskedLM``): that is what it reads in use. Examples are left as they are with 0,
        where one of them has a mask already, and for an `objective` that the head has no part in.
    device : str or torch.device, optional
        Where to compute; a model that is not there is copied to it. Default: where it is. A
        dispatched model computes where its hooks say, and takes no other.
    ignore : iterable of int or str
        Layers, kinds (``"heads"``) or patterns of block names to leave alone. They still count in
        what a fraction is of.
    round_to : int
        Keep numbers of neurons to multiples of this.
    uniform : bool
        The same sizes in every layer, and such as the family's config takes where it can say them.
    remove_blocks : bool
        Whether all heads of a layer, or all neurons, may leave together where the budget is then
        best spent: of such a block the consumer's bias is left, which has taken up the block's mean
        output. Ignored with `uniform` and by methods that keep the same fraction of every block.
        Off by default, as what a block's last units do is hard to foresee; for targets that are out
        of reach otherwise.
    head_dims : bool
        Whether dimensions inside heads may leave too, where the budget is then better spent on
        examples held out: of each layer one number for queries and keys, one for values, in
        multiples of `round_to`. For encoders with BERT's attention and decoders with Llama's, one
        fraction of MACs or parameters, and the default budget; it takes about four times as long.
    objective : {"logits", "hidden-states", "pooled"} or callable, optional
        What the default method preserves. ``"logits"``: what the head says; ``"hidden-states"``:
        the final hidden state of every token, whatever the head; ``"pooled"``: their mean over a
        sequence, its embedding. Or ``(dense_output, pruned_output, batch)`` to a tensor of
        distances. Default: the logits where there are any, else the hidden states
        (`stat_prune.measuring.objectives.output_distance`); of a ``SentenceTransformer`` or
        ``SparseEncoder`` its embeddings, with all that is behind the transformer.
    effort : {"fast", "normal", "thorough"}
        What is spent on the budget. ``"fast"`` measures the whole pruned model at half a dozen
        ways to spread it and takes the nearest to the dense one; ``"normal"`` searches on from
        there for about three forward passes over the calibration set, and decides on examples
        held out; ``"thorough"`` for ten to twelve. Where there are too few examples to hold any
        out, and of methods that do not search, nothing is searched; the report says what was done.
    budget : {"searched", "probed", "unweighted", "even"}, optional
        How the budget is spread over blocks, whatever the method's own way is (`Method`).
    passes : int, optional
        1: the correction is solved from the dense network's activations. 2: it is solved again
        from the pruned network's own, and the solution that does best on calibration sequences
        held out is taken. Default: what the method says, 1 for ``"stat"``.
    precision : {"auto", "float64", "float32"}
        Of the products in the statistics of the activations, which are summed in float64 either
        way. "float32" is quicker, most of all on GPUs that are slow in float64; what is left of a
        channel once others explain it cannot be told from nothing below about 3e-4 of its norm
        (`stat_prune.linalg.Moments`). "auto" is "float32", and another pass with "float64" over
        blocks with channels that come near it, if there are any.
    finish : {"scales", "lora"}, optional
        Fit the result to the dense model's outputs: a scale for every channel that is left, biases
        and norms, on eight times as many examples, where there are so many. It takes a few times as
        long as reading them does, and computes gradients, of the weights (in float32) that change
        (`stat_prune.finish`).
    serve_with : {"llama.cpp", "mlx", "vllm", "onnx", "openvino"}, optional
        Choose only what this program holds, and refuse before any work what it would not:
        multiples of 32 neurons for llama.cpp's quantized rows, numbers of heads that the config
        says for vLLM, no blocks removed where there is no form for that (docs/serving.md). With
        `uniform` nothing is asked but that.
    output_dir : path, optional
        Save there as well. Whatever saving needs is checked before any work; where it fails all the
        same, the error says where the result is kept, and has it as its ``result``.
    work_dir : path, optional
        Keep statistics and probes there until the run is done and saved. A run that was broken off
        and is begun again with the same arguments and weights goes on from them, to the same
        result, on a CPU to the bit; where `output_dir` holds that result already, it is loaded from
        there. It takes a float64 matrix a block, and one run at a time.
    overwrite : bool
        Replace a saved model in `output_dir`; a folder that holds anything else is refused.
    inplace : bool
        Cut the given model itself, which nothing else may use meanwhile.
    progress : bool
        Show a progress bar; where stderr is no terminal, a line a stage.

    Returns
    -------
    PruningResult
        With ``model``, ``report``, ``plan`` and ``save(directory)``.

    Raises
    ------
    StatPruneError
        A subclass of it for every bad input: `DataError`, `ModelError`, `SettingsError`,
        `UnsupportedArchitectureError`, `TargetError`, `SaveError`; and `NonFiniteWeightsError`,
        `NonFiniteActivationsError`, `NonFiniteOutputsError`, which say where NaN or Inf is.
        The model is then as it was.
    """
    check_path("output_dir", output_dir)
    settings = Settings(
        method=method,
        num_calibration_samples=num_calibration_samples,
        max_seq_length=max_seq_length,
        batch_size=batch_size,
        seed=seed,
        mask_fraction=mask_fraction,
        device=device,
        ignore=ignore,
        round_to=round_to,
        uniform=uniform,
        remove_blocks=remove_blocks,
        head_dims=head_dims,
        objective=objective,
        effort=effort,
        budget=budget,
        passes=passes,
        precision=precision,
        finish=finish,
        serve_with=serve_with,
        inplace=inplace,
        progress=progress,
    )
    output = None if output_dir is None else Output(output_dir, flag("overwrite", overwrite))
    (result,) = _pruned(model, dataset, [target], tokenizer, work_dir, settings, output)
    return result


def prune_family(
    model: PreTrainedModel | nn.Module,
    dataset: Any,
    *,
    targets: Sequence[Target],
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> list[PruningResult]:
    """Models of several sizes from one collection, one decomposition and one round of probes.

    Parameters
    ----------
    model, dataset, tokenizer, work_dir
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
    return _pruned(model, dataset, targets, tokenizer, work_dir, Settings(**settings))


def _pruned(
    model: PreTrainedModel | nn.Module,
    dataset: Any,
    targets: Sequence[Target],
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None,
    work_dir: str | os.PathLike[str] | None,
    settings: Settings,
    output: Output | None = None,
) -> list[PruningResult]:
    """Results for several targets; one is saved, where there is an output for it."""
    targets = _checked_targets(targets)
    check_path("work_dir", work_dir)
    tokenizer = given_tokenizer(tokenizer)
    if encoder_kind(model) is not None:
        return _pruned_inside(model, dataset, targets, tokenizer, work_dir, settings, output)
    model = cast(PreTrainedModel, model)
    if settings.inplace and len(targets) > 1:
        raise SettingsError(f"inplace=True makes one model, but {len(targets)} targets were given.")
    if output is not None:
        factored = any(target.is_joint or target.of_embeddings < 1 for target in targets)
        recorded = factored or not settings.uniform
        output.check(model, tokenizer, work_dir=work_dir, recorded=recorded)
    with starting(model, dataset, tokenizer, settings, targets, dispatched=True) as run:
        if settings.head_dims:
            check_narrowing(run, targets)
        budgets = resolve(run, targets)
        for budget in budgets:
            check_budget(run, budget)
        finishing = Finishing.of(run, dataset)
        if settings.baseline is not None:
            results = _planned(run, settings.baseline, budgets, work_dir, finishing)
            if output is not None:
                output.save(*results)
            return results
        _check_method(run)
        with FinishedWork(run, work_dir) as work:
            done = work.result(output, targets)
            results = [done] if done is not None else _measured(run, budgets, work, finishing)
            if done is None and output is not None:
                output.save(*results)
            work.delete()
        return results


def _pruned_inside(
    whole: Any,
    dataset: Any,
    targets: Sequence[Target],
    tokenizer: PreTrainedTokenizerBase | None,
    work_dir: str | os.PathLike[str] | None,
    settings: Settings,
    output: Output | None,
) -> list[PruningResult]:
    """Of a model of sentence-transformers, which reads its texts without masks."""
    settings = replace(settings, mask_fraction=0.0)
    if settings.objective is None and encoder_kind(whole) != "CrossEncoder":
        settings = replace(settings, objective=SentenceEmbeddings(whole).distance)
    inner, tokenizer = transformer_of(whole), tokenizer or whole.tokenizer
    around = None if output is None else replace(output, whole=whole)
    results = _pruned(inner, dataset, targets, tokenizer, work_dir, settings, around)
    return [one.inside(whole) for one in results]


def _planned(
    run: Run,
    baseline: Baseline,
    budgets: Sequence[Budget],
    work_dir: str | os.PathLike[str] | None,
    finishing: Finishing | None,
) -> list[PruningResult]:
    """By a method that makes its plan in a way of its own."""
    check_no_experts(run, baseline.name)
    if work_dir is not None:
        raise SettingsError(
            f"method={baseline.name!r} cannot be taken up again; leave out work_dir."
        )
    planner = baseline.planner
    return [_finished(finishing, one.target, cut(run, one, planner(run, one))) for one in budgets]


def _finished(
    finishing: Finishing | None,
    target: Target,
    result: PruningResult,
    work: FinishedWork | None = None,
) -> PruningResult:
    """A result, fitted to the dense model's outputs where that was asked for."""
    if finishing is None:
        return result
    fit = partial(finishing.fit, result.model)
    return with_finish(result, *(fit() if work is None else work.fit(target, fit)), finishing.run)


def _check_method(run: Run) -> None:
    """Refuse what the model leaves a method nothing to do for."""
    if run.settings.objective is not None:
        check_objective(run)
    if run.settings.passes == 2 and not any(map(can_move, run.blocks)):
        raise SettingsError(
            "passes=2 has nothing to solve again: the residual stream of "
            f"{type(run.model).__name__} gets no consumer's output as it is. Use passes=1."
        )
    if run.settings.num_passes == 2 and run.calibration.num_samples < HELD_OUT:
        warnings.warn(
            f"A second pass holds out one calibration sequence in {HELD_OUT}, and there are "
            f"{run.calibration.num_samples}: there is none. Use more examples.",
            CalibrationWarning,
            stacklevel=4,
        )


def _measured(
    run: Run, budgets: Sequence[Budget], work: FinishedWork, finishing: Finishing | None
) -> list[PruningResult]:
    """By statistics of the activations."""
    recipe = run.settings.recipe
    if not run.blocks:
        return [
            replace(
                _finished(finishing, one.target, cut(run, one, []), work),
                run=work.fingerprint(one.target),
            )
            for one in budgets
        ]
    statistics = work.statistics(lambda: collect(run, recipe))
    candidates = decompose(run, recipe, statistics)
    weights = work.sensitivities(lambda: sensitivities(run, recipe, statistics, candidates))
    search = None
    if recipe.allocation == "searched" and weights is not None:
        search = BudgetSearch(run, recipe, statistics, candidates, weights)

    def decided(target: Target, aim: Budget) -> Decided:
        choice, found = work.choice(
            target, partial(choose_sizes, run, recipe, candidates, weights, aim, search)
        )
        return Decided(*plan(run, recipe, statistics, candidates, weights, choice), found)

    results = []
    for budget in budgets:
        aim, target = budget, budget.target
        if target.is_joint and search is not None:
            aim = best_share(run, budget, search)
        best = decided(target, aim)
        if run.settings.head_dims:
            best = with_head_dims(run, budget, best, lambda wide: decided(wide.target, wide))
        result = _finished(finishing, target, cut(run, aim, *best), work)
        results.append(replace(result, run=work.fingerprint(target)))
    return results


def _checked_targets(targets: Any) -> list[Target]:
    """Of a family: one by itself is a family of one."""
    if isinstance(targets, Target) or not isinstance(targets, Iterable):
        targets = [targets]
    found = [checked_target(target) for target in targets]
    if not found:
        raise TargetError("`targets` is empty. Pass one target a model: [MACs(0.8), MACs(0.6)].")
    return found
