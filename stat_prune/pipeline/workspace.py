"""The working folder of a run: finished pieces of work, each whole or not there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stat_prune.checkpoints.replacing import differences
from stat_prune.choosing.criteria import Candidates
from stat_prune.choosing.measured import Measured
from stat_prune.errors import LoadError, SaveError, SettingsError, StatPruneError
from stat_prune.machine.atomic import remove_directory, replace_directory
from stat_prune.machine.lock import Lock
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import loaded
from stat_prune.pipeline.run import Run
from stat_prune.reporting.report import versions

_MANIFEST = "manifest.json"

#: In pieces of work: time by stage of the run up to there.
_SECONDS = "seconds.pt"

#: Packages whose versions may change a result.
_DECISIVE = ("stat-prune", "torch", "transformers")


class Workspace:
    """A folder of finished pieces of work, which a later run of the same settings takes up.

    One run at a time has it, from here to `close`.

    Parameters
    ----------
    folder : Path
    fingerprint : mapping of str to str
        Everything that a result depends on, by what it is.
    resume : bool
        Take up what is there.

    Raises
    ------
    SettingsError
        If there is something and `resume` is false, or it is of a run with another fingerprint, or
        of one that is still running.
    SaveError
        If the folder cannot be made.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, str], *, resume: bool) -> None:
        self.folder = folder
        begun, self._lock = _locked(folder, fingerprint)
        try:
            if not begun:
                self._take_up(fingerprint, resume)
        except BaseException:
            self.close()
            raise

    def _take_up(self, fingerprint: Mapping[str, str], resume: bool) -> None:
        """Go on with what a run of the same fingerprint has left."""
        folder = self.folder
        if not resume:
            raise SettingsError(
                f"{str(folder)!r} holds a run that was broken off. Pass resume=True (--resume) to "
                "go on with it, or delete the folder."
            )
        differing = differences(_manifest(folder), fingerprint)
        if differing:
            raise SettingsError(
                f"The run in {str(folder)!r} was begun differently: {differing}. Resume it with "
                "the same settings, data and model, or delete the folder to begin again."
            )
        for unfinished in folder.glob("*.saving-*"):  # of the process that was killed
            shutil.rmtree(unfinished, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        """As other processes of the run know it: one of them holds the lock."""
        return self.__dict__ | {"_lock": None}

    def close(self) -> None:
        """Let other runs use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def done(self, name: str) -> bool:
        """Whether a piece of work is finished."""
        return (self.folder / name).is_dir()

    @contextmanager
    def piece(self, name: str, seconds: Mapping[str, float] | None = None) -> Iterator[Path]:
        """A folder to fill with a piece of work, which is finished when the context ends.

        With `seconds`, the time by stage that has been spent then is noted there.
        """
        with _saving(self.folder), replace_directory(self.folder / name) as new:
            yield new
            if seconds is not None:
                write(seconds, new / _SECONDS)

    def seconds(self) -> dict[str, float]:
        """Time by stage of what is finished."""
        known = [read(file) for file in self.folder.glob(f"*/{_SECONDS}")]
        return max(known, key=lambda seconds: sum(seconds.values()), default={})

    def forget(self, *names: str) -> None:
        """Delete what no piece of work needs any more, of a piece or within one."""
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def delete(self) -> None:
        """Delete the folder: in one step, as half of it would be taken for a run to go on with."""
        remove_directory(self.folder)


def _locked(folder: Path, fingerprint: Mapping[str, str]) -> tuple[bool, Lock | None]:
    """Whether a working folder was made, and the lock of it."""
    with _saving(folder):
        while True:
            begun = _begin(folder, fingerprint)
            try:
                return begun, Lock(folder)
            except FileNotFoundError:  # a run has just ended, and its folder with it
                continue


def _begin(folder: Path, fingerprint: Mapping[str, str]) -> bool:
    """Make a working folder, whole, unless there is one."""
    if (folder / _MANIFEST).is_file():
        return False
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{str(folder)!r} is not the working folder of a run. Choose another.")
    try:
        with replace_directory(folder, exchange=False) as new:
            (new / _MANIFEST).write_text(json.dumps(fingerprint, indent=2), encoding="utf-8")
    except OSError:
        if (folder / _MANIFEST).is_file():  # another process was quicker
            return False
        raise
    return True


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    try:
        yield
    except StatPruneError:
        raise
    except OSError as error:
        raise SaveError(
            f"Could not write to {str(folder)!r}: {error}. What was finished is kept there: free "
            "some space, and go on with resume=True (--resume)."
        ) from error


def fingerprint_of(run: Run, weights: Mapping[str, str]) -> dict[str, str]:
    """All that statistics and probes depend on, by what it is.

    Parameters
    ----------
    run : Run
    weights : mapping of str to str
        Digests of the model's weights, and of what they are read with.
    """
    return {
        **{name: str(value) for name, value in run.settings.to_dict().items()},
        "calibration set": run.calibration.fingerprint,
        "held out": held_out.fingerprint if (held_out := run.calibration.held_out) else "",
        "model": type(run.model).__name__,
        "blocks": " ".join(block.name for block in run.blocks),
        **weights,
        **{name: version for name, version in versions().items() if name in _DECISIVE},
    }


def write_statistics(statistics: BlockStatistics, folder: Path, number: int) -> None:
    """Spill what folding needs of a block; the weight is in the checkpoint."""
    values = {f.name: getattr(statistics, f.name) for f in dataclasses.fields(statistics)}
    del values["block"], values["weight"], values["expendable"]
    write(values, folder / f"statistics-{number}.pt")


def read_statistics(
    run: Run,
    block: Block,
    folder: Path,
    number: int,
    *,
    expendable: bool = False,
    dtype: torch.dtype | None = torch.float64,
) -> BlockStatistics:
    """What `write_statistics` has written, with the weight of the layer in memory.

    It is in float64, or as it is for `dtype` None, which `fold` can do with.
    """
    with loaded(run.model.base_model, block.consumer) as consumer:
        weight = consumer.weight.detach()
        weight = weight if dtype is None else weight.to(dtype)
    values = read(folder / f"statistics-{number}.pt", weight.device)
    return BlockStatistics(block=block, weight=weight, **values, expendable=expendable)


def write_measured(measured: Measured, folder: Path, number: int) -> None:
    """What a walk over the layers knows of a block, but for its statistics."""
    candidates = measured.candidates
    fields = {f.name: getattr(candidates, f.name) for f in dataclasses.fields(candidates)}
    del fields["block"]
    values = {
        "candidates": fields,
        "output_energy": measured.output_energy,
        "probe_error": measured.probe_error,
    }
    write(values, folder / f"measured-{number}.pt")


def read_measured(block: Block, folder: Path, number: int) -> Measured:
    """What `write_measured` has left."""
    values = read(folder / f"measured-{number}.pt")
    return Measured(**{**values, "candidates": Candidates(block, **values["candidates"])})


def write(value: Any, path: Path) -> None:
    """Write tensors and plain values.

    Raises
    ------
    OSError
        If that fails, on a full disk.
    """
    try:
        with path.open("wb") as file:
            torch.save(value, file)
    except RuntimeError as error:  # of torch's writer, whatever the system said
        raise OSError(f"{path.name}: {error}") from error


def read(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read what `write` has written.

    Raises
    ------
    LoadError
        If the file is damaged.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise LoadError(
            f"{str(path)!r} is damaged: {error}. Delete the working folder and begin again."
        ) from error


def _manifest(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / _MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{str(folder / _MANIFEST)!r} is damaged: {error}. Delete the folder and begin again."
        ) from error
