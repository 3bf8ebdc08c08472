"""What `prune` and `prune_checkpoint` return."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from stat_prune.checkpoints.checkpoint import copy_checkpoint, save_checkpoint
from stat_prune.checkpoints.loading import load
from stat_prune.checkpoints.model_card import model_card
from stat_prune.checkpoints.pretrained import load_tokenizer
from stat_prune.checkpoints.replacing import PLAN_FILE, REPORT_FILE, check_apart, run_of
from stat_prune.errors import LoadError, SaveError
from stat_prune.model.whole_encoders import encoder_kind, transformer_of, with_transformer
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.what_was_done import what_was_done

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stat_prune.exporting import Exported


class PrunedModel(ABC):
    """A pruned model and the account of it: in memory, or in a folder.

    Attributes
    ----------
    report, plan, tokenizer, source
        As in `PruningResult`.
    """

    report: PruningReport
    plan: dict[str, list[int]]
    source: str | None

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """What is saved beside the model; None for nothing."""

    @abstractmethod
    def load(self) -> PruningResult:
        """The model in memory."""

    @abstractmethod
    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write model, config, tokenizer, report and plan, as `PruningResult.save`."""

    def export(
        self,
        path: str | os.PathLike[str],
        to: str,
        *,
        tokenizer: Any = None,
        overwrite: bool = False,
        **options: Any,
    ) -> Exported:
        """Write the model for another program: llama.cpp, for instance.

        Parameters
        ----------
        path : path
            Of the file or folder.
        to : str
            The form; see `stat_prune.exporting.export`, which has its options and errors, too.
        tokenizer : PreTrainedTokenizerBase, optional
            Default: the result's own.
        overwrite : bool

        Returns
        -------
        Exported
            Where it is, and what is to be said of it.
        """
        from stat_prune.exporting import export  # few who prune export

        found = self.load()
        given = found.tokenizer if tokenizer is None else tokenizer
        model = transformer_of(found.model)
        return export(model, path, to, tokenizer=given, overwrite=overwrite, **options)

    def __repr__(self) -> str:
        before, after = self.report.before.parameters, self.report.after.parameters
        return f"<{type(self).__name__} {self.report.title()}, {before:,} -> {after:,} parameters>"

    def plot(self) -> Figure:
        """What was kept in each layer and, where known, what other sizes would have cost.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        StatPruneError
            Where matplotlib is not installed.
        """
        from stat_prune.reporting.plotting import (
            overview,  # an extra: not everyone who prunes draws
        )

        return overview(self.report, self.plan)

    def save_report(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained web page with the tables and the figures.

        Parameters
        ----------
        path : path
            Of the file, such as ``"report.html"``; one that is there is replaced.

        Raises
        ------
        StatPruneError
            Where matplotlib is not installed.
        SaveError
            If the file cannot be written.
        """
        from stat_prune.reporting.html_report import html_page  # it draws

        page = html_page(self.report, self.plan)
        try:
            Path(path).write_text(page, encoding="utf-8")
        except OSError as error:
            raise SaveError(f"{path} cannot be written: {error.strerror}.") from error


@dataclass(frozen=True, repr=False)
class PruningResult(PrunedModel):
    """A pruned model and the account of it.

    Attributes
    ----------
    model : PreTrainedModel
        Of the same class as the dense model, or a subclass of the same name that knows how to
        reload shapes that differ by layer. Where a model of sentence-transformers was given, one of
        its class.
    report : PruningReport
    plan : dict of str to list of int
        By block name, the units (neurons or query heads) of the dense model that were kept.
    tokenizer : PreTrainedTokenizerBase or None
        Saved beside the model.
    source : str or None
        The folder, or the name on the Hub, that the dense model came from.
    run : dict of str to str, or None
        Where work was kept: all that the result depends on, by what it is; saved beside the model.
    """

    model: PreTrainedModel
    report: PruningReport
    plan: dict[str, list[int]]
    tokenizer: Any = None
    source: str | None = None
    run: dict[str, str] | None = None

    def load(self) -> PruningResult:
        """The result itself, whose model is in memory."""
        return self

    def inside(self, whole: nn.Module) -> PruningResult:
        """The same with a model of sentence-transformers, in which the pruned transformer is.

        The card that this library writes again with a model says what was done, too.
        """
        made: Any = with_transformer(whole, self.model)
        if hasattr(made, "_model_card_text"):
            account = what_was_done(self.report, beside=False)
            card = made._model_card_text
            if card:
                made._model_card_text = (
                    f"{card.rstrip()}\n\n## Pruned with stat-prune\n\n{account}\n"
                )
            else:
                kind = encoder_kind(made)
                made._model_card_text = model_card(self.model, "encoder", kind, account)
        return replace(self, model=cast(PreTrainedModel, made))

    def in_place_of(self, other: PruningResult) -> PruningResult:
        """The same with the model of sentence-transformers of a result that this was made from.

        The card of that model says of this one what it said of the other.
        """
        made: Any = with_transformer(other.model, self.model)
        if getattr(made, "_model_card_text", None):
            before, after = (what_was_done(one.report, beside=False) for one in (other, self))
            made._model_card_text = made._model_card_text.replace(before, after)
        return replace(self, model=cast(PreTrainedModel, made))

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write model, config, tokenizer, report and plan; atomically.

        Parameters
        ----------
        directory : path
        overwrite : bool
            Replace the saved model that is there; killed at any moment, the old or the new one is
            whole.

        Raises
        ------
        SaveError
            If the directory exists and `overwrite` is False, or holds anything but a saved model;
            if it is, holds or shares files with the folder of the dense model; if the disk is full.
        """
        check_apart(directory, self.source)
        save_checkpoint(
            directory,
            model=self.model,
            tokenizer=self.tokenizer,
            files={REPORT_FILE: self.report.to_json(), PLAN_FILE: json.dumps(self.plan)},
            overwrite=overwrite,
            run=self.run,
            account=what_was_done(self.report),
        )


@dataclass(frozen=True, repr=False)
class PrunedCheckpoint(PrunedModel):
    """A pruned model on disk and the account of it.

    Attributes
    ----------
    directory : Path
        For `stat_prune.load`, or ``from_pretrained``.
    report : PruningReport
    plan : dict of str to list of int
    source : str or None
        As in `PruningResult`.
    """

    directory: Path
    report: PruningReport
    plan: dict[str, list[int]]
    source: str | None = None

    @property
    def tokenizer(self) -> Any:
        """The one that lies beside the model; None where there is none."""
        return load_tokenizer(str(self.directory))

    def load(
        self, tokenizer: Any = None, device: torch.device | str | None = None
    ) -> PruningResult:
        """The model in memory, as `stat_prune.prune` returns one.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase, optional
            Of the result. Default: the one that lies beside the model.
        device : str or torch.device, optional

        Raises
        ------
        LoadError
            If the folder is damaged.
        """
        given = self.tokenizer if tokenizer is None else tokenizer
        return replace(saved_result(self.directory, given, device), source=self.source)

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Copy what was written, of which no weight has to fit in memory.

        Parameters and errors are those of `PruningResult.save`.
        """
        check_apart(directory, self.source)
        check_apart(directory, self.directory, "saved")
        copy_checkpoint(self.directory, directory, overwrite=overwrite)


def saved_result(
    folder: Path, tokenizer: Any = None, device: torch.device | str | None = None
) -> PruningResult:
    """What `PruningResult.save` has written.

    Raises
    ------
    LoadError
        If it is damaged.
    """
    model = load(folder, device=device)
    report, plan = read_account(folder)
    return PruningResult(model, report, plan, tokenizer, run=run_of(folder))


def read_account(folder: Path) -> tuple[PruningReport, dict[str, list[int]]]:
    """Report and plan in a saved folder.

    Raises
    ------
    LoadError
        If they are missing or damaged.
    """
    try:
        report = PruningReport.from_dict(json.loads((folder / REPORT_FILE).read_text()))
        return report, json.loads((folder / PLAN_FILE).read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{str(folder)!r} holds no readable report: {error}.") from error
