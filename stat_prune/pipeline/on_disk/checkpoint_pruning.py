"""`prune` for a checkpoint on disk, whose weights need not fit in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Unpack

import huggingface_hub
import torch
from transformers import PreTrainedTokenizerBase

from stat_prune.checkpoints.checkpoint import check_output_directory
from stat_prune.checkpoints.layer_weights import Checkpoint
from stat_prune.checkpoints.pretrained import given_tokenizer, load_tokenizer
from stat_prune.checkpoints.rehearsal import check_can_be_saved
from stat_prune.checkpoints.replacing import (
    check_apart,
    check_working_folder,
    differences,
    run_of,
)
from stat_prune.errors import LoadError
from stat_prune.machine.process_memory import returning_large_blocks, taken_memory
from stat_prune.model.tensors.ordinary_tensors import outside_modes_of_caller
from stat_prune.pipeline.budgeting.budgets import check_budget, resolve
from stat_prune.pipeline.foreseeing.peak_by_layer import needs_of
from stat_prune.pipeline.foreseeing.peak_memory import Reading
from stat_prune.pipeline.foreseeing.streaming_requirements import (
    check_model,
    check_space,
    check_streamed,
    supported_method,
)
from stat_prune.pipeline.on_disk.stored_model import StoredModel
from stat_prune.pipeline.resuming import FinishedWork
from stat_prune.pipeline.run import open_run
from stat_prune.pipeline.saving import Output
from stat_prune.pipeline.stages import results_of
from stat_prune.pipeline.workspace import fingerprint_of
from stat_prune.reporting.result import PrunedCheckpoint, read_account
from stat_prune.settings.arguments import check_path, flag
from stat_prune.settings.options import Arguments
from stat_prune.settings.settings import settings_of
from stat_prune.settings.targets import Target, checked_target

#: Files of a checkpoint that are fetched from the Hub.
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model"]


@outside_modes_of_caller()
@returning_large_blocks()  # from before the empty model, whose weights are made and dropped
def prune_checkpoint(
    model: str | os.PathLike[str],
    dataset: Any,
    *,
    target: Target,
    output_dir: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    auto_class: str | None = None,
    resume: bool = False,
    work_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    **settings: Unpack[Arguments],
) -> PrunedCheckpoint:
    """Prune a checkpoint layer by layer: one layer's weights are in memory at a time.

    The result is that of `stat_prune.prune` with ``effort="fast"``. The calibration set goes
    through the layers one by one, and so do the probes, all together; what enters a layer, and the
    statistics that are needed later, are on disk. On a second walk whole pruned models are
    compared, a layer of each at a time. A third cuts the layers and writes each as a shard; then
    embeddings and a head are factored. Where these share one budget with the blocks, the ways to
    share it out are compared before, on two or three walks more.

    Parameters
    ----------
    model : path or str
        A folder with ``config.json`` and safetensors files, or a name on the Hub.
    dataset, target
        As for `stat_prune.prune`; but no `Latency`, as the model is never whole, and no dimensions
        inside heads.
    output_dir : path
        Appears when it is complete.
    tokenizer : PreTrainedTokenizerBase or path, optional
        Default: the one in the folder, where there is one.
    auto_class : str, optional
        ``"AutoModel"`` where the folder lacks the head that its config names (`stat_prune.load`).
    resume : bool
        Take up a run that was broken off. Settings, data, model files and versions have to be the
        same, and so, on a CPU, is the result, to the bit. Without such a run, begin one; of one
        that has ended, give the result.
    work_dir : path, optional
        For finished pieces of work; deleted at the end. It takes the Gram matrix of every block in
        float64 and the hidden states of all sequences. Default: `output_dir` with ``.working``.
    overwrite : bool
        Replace a saved model in `output_dir`; a folder that holds anything else is refused.
    **settings
        The other arguments of `stat_prune.prune`, but for ``inplace``, ``passes`` and more
        ``effort``. The method is a name or a `Method` that needs no more than the statistics. A
        smaller ``batch_size`` takes less memory.

    Returns
    -------
    PrunedCheckpoint
        The report has the predicted and the measured peak of memory.

    Raises
    ------
    LoadError
        If a file of the checkpoint is missing or damaged, before any work.
    ModelError
        For encoder-decoders, two towers, layers that share weights, and weights that are not
        finite.
    SaveError
        If there is no space left: what was finished is kept, for `resume`.
    StatPruneError
        As for `stat_prune.prune`.
    """
    chosen_settings = settings_of(prune_checkpoint, settings, effort="fast")
    recipe = supported_method(chosen_settings, checked_target(target))
    check_streamed(target)
    check_path("model", model)
    check_path("output_dir", output_dir)
    check_path("work_dir", work_dir)
    resume, overwrite = flag("resume", resume), flag("overwrite", overwrite)
    given = given_tokenizer(tokenizer)
    output = Path(os.path.realpath(output_dir))
    working = Path(os.path.realpath(work_dir)) if work_dir else Path(f"{output}.working")
    # A run that was killed when all was done, or that is resumed although it has ended.
    written = resume and run_of(output) is not None
    if not written:
        check_output_directory(output, overwrite=overwrite)
    folder = _folder(model)
    check_apart(output, folder)
    check_working_folder(output, working)
    checkpoint = Checkpoint(folder, torch.device(chosen_settings.device or "cpu"), auto_class)
    check_model(checkpoint)
    tokenizer = load_tokenizer(str(folder)) if given is None else given
    check_can_be_saved(checkpoint.model, tokenizer, recorded=not chosen_settings.uniform)
    with open_run(checkpoint.model, dataset, tokenizer, chosen_settings, [target]) as run:
        (budget,) = resolve(run, [target])
        check_budget(run, budget)
        needs = needs_of(run.model, run.blocks, Reading.of(run), recipe, budget)
        predicted = taken_memory(run.device) + needs.memory
        with run.stage("read weights"):
            digests = checkpoint.digests()
        fingerprint = fingerprint_of(run, digests) | {"target": repr(target)}
        if written and (done := _finished(output, fingerprint, folder, overwrite)) is not None:
            if working.is_dir():  # it was killed when all was done but tidying up
                with FinishedWork(run, working, fingerprint) as work:
                    work.delete()
            return done
        if not working.exists():
            check_space(working, needs)
            checkpoint.check_finite()
        with FinishedWork(run, working, fingerprint, resume=resume) as work:
            run.stopwatch.seconds |= work.workspace.seconds()
            source = StoredModel(
                run, work, checkpoint, Output(output, overwrite), budget, predicted
            )
            (result,) = results_of(source, [budget], work)
            work.delete()
    return result


def _finished(
    output: Path, fingerprint: dict[str, str], folder: Path, overwrite: bool
) -> PrunedCheckpoint | None:
    """The result of a run, where its folder holds that and not another's.

    Raises
    ------
    SaveError
        If it holds another's, and that may not be replaced.
    """
    if differences(run_of(output) or {}, fingerprint):
        check_output_directory(output, overwrite=overwrite)
        return None
    return PrunedCheckpoint(output, *read_account(output), str(folder))


def _folder(model: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, fetched from the Hub where it is a name there."""
    if os.path.isdir(model):
        return Path(model)
    try:
        return Path(huggingface_hub.snapshot_download(str(model), allow_patterns=_WANTED))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{str(model)!r} is neither a folder nor a model that could be fetched from the Hub: "
            f"{error}"
        ) from error
