"""The folder of a run: what is done in it is not done again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stat_prune.errors import SaveError, SettingsError
from stat_prune.pipeline.run import Run
from stat_prune.reporting.result import PruningResult, saved_result
from stat_prune.vib.config import VIBConfig

CONFIG_FILE = "vib_config.json"


@dataclass(frozen=True)
class RunFolder:
    """Checkpoints, the model when it is cut, and the model when it is trained, by fraction.

    Attributes
    ----------
    path : Path
    """

    path: Path

    @classmethod
    def opened(cls, path: str | Path, config: VIBConfig, resume: bool) -> RunFolder:
        """Make the folder, or go on with one of the same config.

        Raises
        ------
        SaveError
            If it holds something and `resume` is False, or it cannot be made.
        SettingsError
            If the run in it had another config.
        """
        folder = Path(path)
        written = folder / CONFIG_FILE
        try:
            if folder.exists() and any(folder.iterdir()):
                if not resume:
                    raise SaveError(
                        f"{str(path)!r} is not empty; pass resume=True to go on with the run in "
                        "it, or another folder."
                    )
                if not written.is_file() or written.read_text(encoding="utf-8") != config.to_json():
                    raise SettingsError(
                        f"{str(path)!r} holds no run with this config. Pass the same mode and "
                        "config as before, or another folder."
                    )
                return cls(folder)
            folder.mkdir(parents=True, exist_ok=True)
            written.write_text(config.to_json(), encoding="utf-8")
        except OSError as error:
            if isinstance(error, SaveError):
                raise
            raise SaveError(f"{str(path)!r} cannot be written: {error}.") from error
        return cls(folder)

    def __truediv__(self, name: str) -> RunFolder:
        return RunFolder(self.path / name)

    def result(self, name: str, run: Run) -> PruningResult | None:
        """What was saved under a name; None if nothing was.

        Raises
        ------
        LoadError
            If it is damaged.
        """
        folder = self.path / name
        if not folder.is_dir():
            return None
        found = saved_result(folder, run.tokenizer, run.device)
        trained = {name: p.requires_grad for name, p in run.model.named_parameters()}
        for key, parameter in found.model.named_parameters():
            parameter.requires_grad_(trained.get(key, True))
        return found
