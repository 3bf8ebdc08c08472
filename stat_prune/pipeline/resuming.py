"""A run that was broken off measures nothing again that it had measured."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.machine.digests import add_tensor
from stat_prune.machine.distributed import broadcast
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.dispatched import stored_tensors
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.saving import Output
from stat_prune.pipeline.workspace import (
    Workspace,
    read,
    read_statistics,
    write,
    write_statistics,
)
from stat_prune.reporting.finish_report import Finish
from stat_prune.reporting.result import PruningResult
from stat_prune.reporting.search_report import Search
from stat_prune.settings.targets import Target

Value = TypeVar("Value")

_PROBES, _CHOICE, _FIT = "sensitivities.pt", "choice.pt", "fit.pt"


class FinishedWork:
    """What a run has measured, in a folder; nothing is kept where none is given.

    Of several processes the first reads and writes. A context: no other run has the folder inside.

    Parameters
    ----------
    run : Run
    folder : path or None
    fingerprint : mapping of str to str
        All that the work depends on, by what it is (`workspace.fingerprint_of`).
    resume : bool
        Take up what is there.

    Raises
    ------
    SettingsError
        If the folder is of a run with other settings, data or weights, or that still goes on; or
        of any and `resume` is false.
    SaveError
        If the folder cannot be made.
    """

    def __init__(
        self,
        run: Run,
        folder: str | os.PathLike[str] | None = None,
        fingerprint: Mapping[str, str] | None = None,
        *,
        resume: bool = True,
    ) -> None:
        self._run, self._fingerprint, self._resume = run, dict(fingerprint or {}), resume
        self._workspace: Workspace | None = None
        self._locked: Workspace | None = None
        if folder is not None:
            self._folder = Path(os.path.realpath(folder))
            self._workspace = broadcast(self._open)

    @property
    def workspace(self) -> Workspace:
        """The folder, of a run that keeps its work in one."""
        assert self._workspace is not None
        return self._workspace

    def __enter__(self) -> FinishedWork:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._locked is not None:
            self._locked.close()

    def fingerprint(self, target: Target) -> dict[str, str] | None:
        """All that the result for a target depends on; None where nothing is kept."""
        if self._workspace is None:
            return None
        return self._fingerprint | {"target": repr(target)}

    def result(self, output: Output | None, targets: Sequence[Target]) -> PruningResult | None:
        """That of an earlier run, where all is done and saved."""
        run = self.fingerprint(targets[0])
        if output is None or run is None:
            return None
        return output.finished(run, tokenizer=self._run.tokenizer, device=self._run.device)

    def statistics(self, collect: Callable[[], list[BlockStatistics]]) -> list[BlockStatistics]:
        """Those of an earlier run, or those that are collected now."""
        blocks = self._run.blocks

        def save(found: list[BlockStatistics], folder: Path) -> None:
            for number, one in enumerate(found):
                write_statistics(one, folder, number)

        def load(folder: Path) -> list[BlockStatistics]:
            return [
                read_statistics(self._run, block, folder, number)
                for number, block in enumerate(blocks)
            ]

        return self._kept("statistics", collect, save, load)

    def sensitivities(self, probe: Callable[[], list[Tensor] | None]) -> list[Tensor] | None:
        """Those of an earlier run, or those that are measured now."""
        kept: list[Tensor] | None = self._kept(
            "probes",
            probe,
            lambda found, folder: write(found, folder / _PROBES),
            lambda folder: read(folder / _PROBES),
        )
        return kept

    def choice(
        self, target: Target, choose: Callable[[], tuple[list[int], Search | None]]
    ) -> tuple[list[int], Search | None]:
        """That of an earlier run for a target, or that which is made now."""

        def save(found: tuple[list[int], Search | None], folder: Path) -> None:
            choice, search = found
            write((choice, None if search is None else asdict(search)), folder / _CHOICE)

        def load(folder: Path) -> tuple[list[int], Search | None]:
            choice, search = read(folder / _CHOICE)
            return choice, None if search is None else Search.from_dict(search)

        return self._kept(f"choice-{_key(target)}", choose, save, load)

    def fit(
        self, target: Target, fit: Callable[[], tuple[dict[str, Tensor], Finish]]
    ) -> tuple[dict[str, Tensor], Finish]:
        """What an earlier run has fitted for a target, or what is fitted now."""

        def save(found: tuple[dict[str, Tensor], Finish], folder: Path) -> None:
            changed, report = found
            write((changed, asdict(report)), folder / _FIT)

        def load(folder: Path) -> tuple[dict[str, Tensor], Finish]:
            changed, report = read(folder / _FIT)
            return changed, Finish(**report)

        return self._kept(f"finish-{_key(target)}", fit, save, load)

    def delete(self) -> None:
        """Nothing of it is needed any more: the results are saved, or in the caller's hands."""
        workspace = self._workspace
        if workspace is not None:
            broadcast(workspace.delete)

    def _open(self) -> Workspace:
        self._locked = Workspace(self._folder, self._fingerprint, resume=self._resume)
        return self._locked

    def _kept(
        self,
        name: str,
        measure: Callable[[], Value],
        save: Callable[[Value, Path], None],
        load: Callable[[Path], Value],
    ) -> Value:
        workspace = self._workspace
        if workspace is None:
            return measure()
        if broadcast(lambda: workspace.done(name)):
            self._run.stopwatch.seconds |= broadcast(workspace.seconds)
            return broadcast(lambda: load(workspace.folder / name))
        found = measure()

        def finish() -> None:
            with workspace.piece(name, self._run.stopwatch.seconds) as folder:
                save(found, folder)

        broadcast(finish)
        return found


def _key(target: Target) -> str:
    return hashlib.sha256(repr(target).encode()).hexdigest()[:16]


def digest_of(model: PreTrainedModel) -> dict[str, str]:
    """sha256 of names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in stored_tensors(model):
        add_tensor(digest, name, tensor)
    return {"weights": digest.hexdigest()}
