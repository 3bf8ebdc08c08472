"""`vib_finetune`: train masks under a budget, cut, train what is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.pretrained import given_tokenizer
from stat_prune.checkpoints.rehearsal import check_can_be_saved
from stat_prune.data.training_data import predicts_next_tokens
from stat_prune.errors import SettingsError, TargetError
from stat_prune.machine.lock import Lock
from stat_prune.measuring.distillation import check_teacher
from stat_prune.model.model_checks import check_is_model
from stat_prune.model.one_run import model_of_run
from stat_prune.pipeline.method_requirements import single_fraction
from stat_prune.pipeline.run import Run, start_run
from stat_prune.reporting.result import PruningResult
from stat_prune.settings.arguments import check_number, check_path, flag
from stat_prune.settings.settings import Settings
from stat_prune.settings.targets import Latency, Target, checked_target
from stat_prune.vib.config import VIBConfig, config_named
from stat_prune.vib.folder import RunFolder
from stat_prune.vib.steps import Finetuning


def vib_finetune(
    model: PreTrainedModel,
    train_dataset: Any,
    *,
    target: Target,
    mode: str | VIBConfig = "full",
    teacher: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    labels: bool | None = None,
    gradual: Sequence[float] = (),
    hidden: float | None = None,
    max_seq_length: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    ignore: Iterable[int | str] = (),
    output_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> PruningResult:
    """Shrink a model, dense or pruned before, by masks that are trained with it (VTrans).

    Masks ``z = mean + sigma * noise`` on heads and neurons learn, under a penalty on what they let
    pass (a variational information bottleneck) and a Lagrangian on the expected cost, which units
    carry signal. Units are then kept in the order of ``log alpha = log sigma^2 - log mean^2`` as
    far as the budget goes, the model is cut, and what is left is trained on. The given model is
    left as it is.

    Parameters
    ----------
    model : PreTrainedModel
        In float32, unless only masks are trained. Parameters that require no gradient stay as they
        are.
    train_dataset : object
        As for `stat_prune.prune`; all of it is read, or as many examples, at random, as training
        can see where `mode` gives steps in place of epochs. Labels are one number an example in a
        column ``labels`` or ``label``; texts are their own for causal language models.
    target : MACs or Parameters
        One fraction of what `model` costs as it is given; 1 removes nothing and only trains.
        MACs are counted at the mean length of the data, where the target names none.
    mode : {"full", "fast", "masks"} or VIBConfig
        ``"full"``: masks and weights, then the pruned model, on all data. ``"fast"``: the same on
        3 % of the data. ``"masks"``: masks alone, for the fewest steps, and STAT's correction after
        the cut; needs no labels.
    teacher : PreTrainedModel, optional
        Whose outputs and hidden states are matched. Default: `model`; after `prune`, pass the dense
        model.
    tokenizer : PreTrainedTokenizerBase or path, optional
        The model's own; needed where `train_dataset` is text, and saved with the result.
    labels : bool, optional
        Whether a task loss counts beside the teacher. Default: where all examples have labels.
    gradual : sequence of float
        Kept fractions on the way to the target, descending: masks, cut and training for each in
        turn (ZipLM's gradual setting, Kurtic et al. 2023). Every step leaves a model in
        `output_dir`, which is then needed.
    hidden : float, optional
        Fraction of the hidden dimensions to keep, chosen by one mask that all layers share;
        embeddings, norms, blocks, pooler and head lose the others (families in
        `stat_prune.vib.stream.FAMILIES`). `Parameters` then is a fraction of all parameters of the
        model, embeddings too, as in VTrans.
    max_seq_length : int, optional
        As for `stat_prune.prune`.
    seed : int
    device : str or torch.device, optional
        Where to compute. Default: where the model is.
    ignore : iterable of int or str
        Layers, kinds or patterns of block names to leave alone.
    output_dir : path, optional
        For checkpoints, and for the model of every fraction: ``<output_dir>/0.5/model``.
    resume : bool
        Go on with what `output_dir` holds.
    progress : bool
        Show a progress bar, with expected cost and target.

    Returns
    -------
    PruningResult
        Of the target. ``report.settings["threshold_fraction"]`` is what ``log alpha < 0`` alone
        would have kept.

    Raises
    ------
    StatPruneError
        A subclass for every bad input, as for `stat_prune.prune`; `SettingsError` for a teacher of
        another vocabulary or task; `DataError` for a task loss without labels; `TargetError` for a
        target out of reach; `NonFiniteLossError` if the loss is lost.

    References
    ----------
    .. [1] Dutta, Gupta and Agarwal, "VTrans: Accelerating Transformer Compression with Variational
       Information Bottleneck based Pruning", 2024 (arXiv:2406.05276).
    .. [2] Dai, Zhu, Guo and Wipf, "Compressing Neural Networks using the Variational Information
       Bottleneck", ICML 2018.
    .. [3] Xia, Zhong and Chen, "Structured Pruning Learns Compact and Accurate Models", ACL 2022.
    """
    config = config_named(mode).resolved(language_model=predicts_next_tokens(model))
    tokenizer, resume = given_tokenizer(tokenizer), flag("resume", resume)
    labels = None if labels is None else flag("labels", labels)
    check_path("output_dir", output_dir)
    if teacher is not None:
        check_is_model("teacher", teacher)
    fractions = _fractions(target, gradual, hidden, output_dir)
    settings = Settings(
        num_calibration_samples=config.num_examples,
        max_seq_length=max_seq_length,
        batch_size=config.batch_size,
        seed=seed,
        device=device,
        ignore=ignore,
        progress=progress,
    )
    if output_dir is not None and isinstance(model, PreTrainedModel):
        check_can_be_saved(model, tokenizer)
    with (
        start_run(model, train_dataset, tokenizer, settings) as run,
        _teaching(run, teacher) as one,
    ):
        finetuning = Finetuning.prepared(run, target, config, one, labels, hidden)
        finetuning.prices(finetuning.hidden).check_reachable(fractions[-1])
        if output_dir is None:
            return finetuning.results(fractions, None)[-1]
        folder = RunFolder.opened(output_dir, config, resume)
        with closing(Lock(folder.path)):
            return finetuning.results(fractions, folder)[-1]


def _fractions(
    target: Target, gradual: Sequence[float], hidden: float | None, output_dir: Any
) -> list[float]:
    checked_target(target)
    if isinstance(target, Latency) or target.factors:
        raise TargetError(f"vib_finetune takes MACs or Parameters of blocks, got {target!r}.")
    gradual = _numbers("gradual", gradual)
    if hidden is not None:
        _numbers("hidden", [hidden])
    fractions = [*gradual, single_fraction(target, "vib")]
    if any(not 0 < after < before <= 1 for before, after in pairwise(fractions)):
        raise TargetError(
            f"`gradual` must descend towards the target within (0, 1], got {list(gradual)!r} "
            f"before {fractions[-1]:g}."
        )
    if gradual and hidden is not None:
        raise SettingsError("`gradual` is of heads and neurons. Leave hidden= or gradual= away.")
    if gradual and output_dir is None:
        raise SettingsError("`gradual` leaves a model at every step. Pass output_dir= for them.")
    if find_spec("accelerate") is None:
        raise SettingsError(
            "vib_finetune trains with transformers.Trainer, which needs accelerate: "
            "pip install 'stat-prune[vib]'."
        )
    return fractions


def _numbers(name: str, values: Any) -> list[float]:
    """Numbers, of which one may be given by itself."""
    found = list(values) if isinstance(values, Iterable) else [values]
    for value in found:
        check_number(name, value)
    return found


@contextmanager
def _teaching(run: Run, teacher: PreTrainedModel | None) -> Iterator[PreTrainedModel]:
    """The teacher in evaluation mode, on the run's device; the given one is as it was."""
    if teacher is None:
        yield run.model.eval()
        return
    check_teacher(run.model, teacher)
    with model_of_run(teacher) as one:
        module: nn.Module = one.eval()
        yield module.to(run.device)  # type: ignore[misc]
