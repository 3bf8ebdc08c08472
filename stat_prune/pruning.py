"""The one call: calibrate, collect, decompose, probe, allocate and fold, cut."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.pretrained import given_tokenizer, open_model
from stat_prune.errors import SettingsError, TargetError
from stat_prune.finishing import Finishing, with_finish
from stat_prune.measuring.sentence_embeddings import digest_behind, settings_inside
from stat_prune.model.whole_encoders import encoder_kind, transformer_of
from stat_prune.pipeline.budgeting.budgets import check_budget, resolve
from stat_prune.pipeline.inside_heads.kept_dims import check_kept_dims
from stat_prune.pipeline.inside_heads.narrowing_heads import check_narrowing
from stat_prune.pipeline.loaded_model import LoadedModel
from stat_prune.pipeline.method_requirements import check_method
from stat_prune.pipeline.resuming import FinishedWork, digest_of
from stat_prune.pipeline.run import start_run
from stat_prune.pipeline.saving import Output
from stat_prune.pipeline.stages import results_of
from stat_prune.pipeline.workspace import fingerprint_of
from stat_prune.reporting.result import PruningResult
from stat_prune.settings.arguments import check_path, flag
from stat_prune.settings.methods import Baseline, Finish, Method
from stat_prune.settings.options import Arguments, Calibration, Constraints, Options
from stat_prune.settings.settings import Settings, settings_of
from stat_prune.settings.targets import Target, checked_target


def prune(
    model: PreTrainedModel | nn.Module | str | os.PathLike[str],
    dataset: Any,
    *,
    target: Target,
    method: str | Method | Baseline = "stat",
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    calibration: Calibration | None = None,
    constraints: Constraints | None = None,
    ignore: int | str | Iterable[int | str] | None = (),
    device: str | int | torch.device | None = None,
    finish: Finish | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    inplace: bool = False,
    progress: bool = True,
    **options: Unpack[Options],
) -> PruningResult:
    """Shrink a trained transformer with a few hundred unlabelled examples; no gradients.

    The model given is left as it is unless `inplace` is true, and can be used meanwhile, in other
    threads too: the run works on a copy that shares its weights.

    Fields of `calibration`, `constraints` and `method` are taken by themselves, too, such as
    ``seed=1``; these then go before what the object says. ``help(stat_prune.Calibration)`` and its
    like explain each.

    Parameters
    ----------
    model : PreTrainedModel or path
        A path may be a name on the Hub, too; the tokenizer there is then used. Of a supported
        family, with any head; docs/architectures.md lists them. Of another family that reads text,
        blocks are inferred and proven first (`infer_architecture`), or described by you
        (`register_architecture`). One that accelerate has dispatched (``device_map``) is pruned
        where its hooks compute, and the result is dispatched in the same way. Or a
        ``SentenceTransformer``, ``CrossEncoder`` or ``SparseEncoder``, or the path of one: its
        transformer is pruned, what is behind that stays, and the result is one of the same class.
    dataset : object
        Unlabelled examples in any common form: strings, a ``datasets.Dataset`` or its name, a
        ``DataLoader``, a file; see `stat_prune.data.calibration.build_calibration_set`.
    target : MACs, Parameters, Latency or Tolerance
        The fraction that is *kept*, and of what; ``Speedup(s)`` is ``Latency(1 / s)``.
    method : str or Method
        ``"stat"`` (default), ``"stat-paper"`` (the authors' recipe), a baseline
        (``"magnitude"``, ``"random"``, ``"id-uncorrected"``, ...), a criterion for heads alone
        (``"attention-entropy"``, ..., with ``target=MACs({"heads": 0.5})``), a published method
        (``"fisher"``, ``"kprune"``, ``"kcm"``, ...; `stat_prune.baselines`), or a `Method`.
    tokenizer : PreTrainedTokenizerBase or path, optional
        The model's own, or where it can be loaded from, or a processor, feature extractor or image
        processor; a tokenizer is needed where `dataset` is text. It is saved with the result.
        Models of sentence-transformers have their own.
    calibration : Calibration, optional
        How many examples are read, and how.
    constraints : Constraints, optional
        What sizes the result may have.
    ignore : iterable of int or str
        Layers, kinds (``"heads"``) or patterns of block names to leave alone. They still count in
        what a fraction is of.
    device : str or torch.device, optional
        Where to compute; a model that is not there is copied to it. Default: where it is. A
        dispatched model computes where its hooks say, and takes no other.
    finish : {"scales", "lora", "weights"}, optional
        Fit the result to the dense model's outputs: a scale for every channel that is left, biases
        and norms, on eight times as many examples, where there are so many. It takes a few times as
        long as reading them does, and computes gradients, of the weights (in float32) that change
        (`stat_prune.finish`).
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

    Other Parameters
    ----------------
    num_calibration_samples, max_seq_length, batch_size, seed, mask_fraction
        As `Calibration` says, by themselves: 512 examples, of 512 tokens at most, are read 32 at a
        time.
    round_to, uniform, remove_blocks, head_dims, serve_with
        As `Constraints` says: layers may differ in size, and their numbers of neurons be any.
    objective, effort, budget, passes, precision
        As `Method` says, where `budget` is its ``allocation``: what the method preserves, and what
        is spent on it. Also of a method that has a name.

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
    arguments: Arguments = {
        "method": method,
        "calibration": calibration,
        "constraints": constraints,
        "ignore": ignore,
        "device": device,
        "finish": finish,
        "inplace": inplace,
        "progress": progress,
        **options,
    }
    settings = settings_of(prune, arguments)
    check_path("output_dir", output_dir)
    output = None if output_dir is None else Output(output_dir, flag("overwrite", overwrite))
    (result,) = _pruned(model, dataset, [target], tokenizer, work_dir, settings, output)
    return result


def prune_family(
    model: PreTrainedModel | nn.Module | str | os.PathLike[str],
    dataset: Any,
    *,
    targets: Sequence[Target],
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    **settings: Unpack[Arguments],
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
    chosen = settings_of(prune_family, settings)
    return _pruned(model, dataset, targets, tokenizer, work_dir, chosen)


def _pruned(
    model: PreTrainedModel | nn.Module | str | os.PathLike[str],
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
    if isinstance(model, str | os.PathLike):
        model, own_tokenizer = open_model(os.fspath(model))
        tokenizer = tokenizer or own_tokenizer
        settings = replace(settings, inplace=len(targets) == 1)  # nobody else has this model
    if encoder_kind(model) is not None:
        return _pruned_inside(model, dataset, targets, tokenizer, work_dir, settings, output)
    model = cast(PreTrainedModel, model)
    if settings.inplace and len(targets) > 1:
        raise SettingsError(f"inplace=True makes one model, but {len(targets)} targets were given.")
    if output is not None:
        recorded = any(target.factors for target in targets) or not settings.uniform
        output.check(model, tokenizer, work_dir=work_dir, recorded=recorded)
    with start_run(model, dataset, tokenizer, settings, targets, dispatched=True) as run:
        if settings.head_dims:
            check_narrowing(run, targets)
        budgets = resolve(run, targets)
        for budget in budgets:
            check_budget(run, budget)
        check_kept_dims(run, budgets)
        finishing = Finishing.of(run, dataset)
        check_method(run, kept=work_dir is not None)
        fingerprint = None
        if work_dir is not None:
            weights = digest_of(run.model) | digest_behind(settings.objective)
            fingerprint = fingerprint_of(run, weights)
        with FinishedWork(run, work_dir, fingerprint) as work:
            done = work.result(output, targets)
            if done is not None:
                work.delete()
                return [done]
            found = results_of(LoadedModel(run, work), budgets, work)
            results = [
                one if finishing is None else _finished(finishing, target, one, work)
                for one, target in zip(found, targets, strict=True)
            ]
            if output is not None:
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
    """Of a model of sentence-transformers."""
    settings = replace(settings, **settings_inside(whole, settings.objective))
    inner, tokenizer = transformer_of(whole), tokenizer or whole.tokenizer
    around = None if output is None else replace(output, whole=whole)
    results = _pruned(inner, dataset, targets, tokenizer, work_dir, settings, around)
    return [one.inside(whole) for one in results]


def _finished(
    finishing: Finishing, target: Target, result: PruningResult, work: FinishedWork
) -> PruningResult:
    """A result, fitted to the dense model's outputs."""
    fitted = work.fit(target, partial(finishing.fit, result.model))
    return with_finish(result, *fitted, finishing.run)


def _checked_targets(targets: Any) -> list[Target]:
    """Of a family: one by itself is a family of one."""
    if isinstance(targets, Target) or not isinstance(targets, Iterable):
        targets = [targets]
    found = [checked_target(target) for target in targets]
    if not found:
        raise TargetError("`targets` is empty. Pass one target a model: [MACs(0.8), MACs(0.6)].")
    return found
