"""What a finish begins with: a pruned model, the dense one, and what the run was to preserve."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from stat_prune.checkpoints.encoder_folders import find_encoder, open_encoder
from stat_prune.checkpoints.pretrained import load_pretrained, load_tokenizer
from stat_prune.errors import LoadError, SettingsError
from stat_prune.model.model_checks import check_is_model
from stat_prune.model.running import Objective
from stat_prune.model.whole_encoders import transformer_of
from stat_prune.reporting.result import (
    PrunedCheckpoint,
    PruningResult,
    read_account,
    saved_result,
)
from stat_prune.settings.arguments import check_path
from stat_prune.settings.methods import OBJECTIVES, ObjectiveName
from stat_prune.settings.settings import OF_WHOLE_ENCODERS


def opened(given: Any, asked: ObjectiveName | Objective | None) -> PruningResult:
    """A result by itself, or from its folder; that of a model of sentence-transformers whole.

    Parameters
    ----------
    given : PruningResult, PrunedCheckpoint or path
    asked : str or callable, optional
        The objective of the finish, where one was asked for.

    Raises
    ------
    SettingsError
        If it is something else.
    LoadError
        If the folder is missing or damaged; if it holds an encoder that sentence-transformers does
        not open, and whose embeddings are to be fitted.
    """
    if isinstance(given, PruningResult):
        return given
    if isinstance(given, PrunedCheckpoint):
        return replace(opened(given.directory, asked), source=given.source)
    if not isinstance(given, str | os.PathLike):
        raise SettingsError(
            "`result` must be what prune, prune_family, prune_checkpoint or vib_finetune has "
            f"returned, or the folder that it was saved in, got {type(given).__name__}."
        )
    check_path("result", given)
    folder = os.fspath(given)
    if not os.path.isdir(folder):
        raise LoadError(f"{folder!r} is not a folder. Pass the one that the result was saved in.")
    encoder = find_encoder(folder)
    if encoder is None:
        return _transformer_in(folder)
    report, plan = read_account(Path(folder))
    try:
        whole: Any = open_encoder(folder, encoder)
    except LoadError as error:
        objective = asked or report.settings.get("objective")
        if encoder.kind == "CrossEncoder" or objective not in (None, OF_WHOLE_ENCODERS):
            return _transformer_in(folder)
        raise LoadError(
            f"{folder!r} holds a {encoder.kind}, whose embeddings are to be fitted: "
            f"{str(error).rstrip('.')}. Mend that, or pass objective='hidden-states', to which its "
            "transformer is fitted alone."
        ) from error
    return PruningResult(whole, report, plan, whole.tokenizer)


def _transformer_in(folder: str) -> PruningResult:
    found = saved_result(Path(folder))
    return replace(found, tokenizer=load_tokenizer(folder))


def dense_model(result: PruningResult, teacher: Any) -> PreTrainedModel:
    """The transformer whose outputs are matched; without a head, where the pruned one has none.

    Parameters
    ----------
    result : PruningResult
    teacher : PreTrainedModel, nn.Module or path, optional
        The dense model, of sentence-transformers too, or where it is; by default where the result
        came from.

    Raises
    ------
    SettingsError
        If it is not known.
    LoadError
        If it cannot be loaded.
    ModelError
        If it is no model.
    """
    given = result.source if teacher is None else teacher
    if given is None:
        raise SettingsError(
            "The dense model, whose outputs are matched, is not known here. Pass it: teacher=model."
        )
    if isinstance(given, str | os.PathLike):
        check_path("teacher", given)
        found = load_pretrained(os.fspath(given))
    else:
        found = transformer_of(given)
        check_is_model("teacher", found)
    pruned = transformer_of(result.model)
    headless = pruned.base_model is pruned
    return cast(PreTrainedModel, found.base_model) if headless else found


def objective_of(
    result: PruningResult, whole: nn.Module | None, asked: ObjectiveName | Objective | None
) -> ObjectiveName | Objective | None:
    """What is fitted to: what was asked for, or what the run was to preserve; None as nobody said.

    Parameters
    ----------
    result : PruningResult
    whole : nn.Module, optional
        The model of sentence-transformers that the result, or the dense model, is in.
    asked : str or callable, optional

    Raises
    ------
    SettingsError
        If the run preserved what only a function of its user's can say.
    """
    recorded = result.report.settings.get("objective")
    if asked is not None or recorded is None:
        return asked
    if recorded in OBJECTIVES:
        named: ObjectiveName = recorded
        return named
    if recorded != OF_WHOLE_ENCODERS:
        raise SettingsError(
            f"The run was to preserve what the function {recorded} says, of which its report has "
            f"the name alone. Pass it again, as objective=, or one of {', '.join(OBJECTIVES)}."
        )
    if whole is None:
        raise SettingsError(
            "The run was to preserve the embeddings of a model of sentence-transformers, and the "
            "result has its transformer alone. Pass the dense one whole, as teacher=, or an "
            f"objective: {', '.join(OBJECTIVES)}."
        )
    return None
