"""Where the result of a run goes: checked before the work, and never the end of it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from stat_prune.checkpoints.checkpoint import check_output_directory
from stat_prune.checkpoints.rehearsal import check_can_be_saved
from stat_prune.checkpoints.replacing import (
    PLAN_FILE,
    REPORT_FILE,
    check_apart,
    check_working_folder,
    differences,
    run_of,
)
from stat_prune.errors import SaveError
from stat_prune.machine.distributed import broadcast, rank
from stat_prune.model.dispatched import stored_tensors
from stat_prune.model.whole_encoders import transformer_of
from stat_prune.reporting.result import PruningResult, saved_result


@dataclass(frozen=True)
class Output:
    """The folder that a result is to be saved in.

    Attributes
    ----------
    directory : path
    overwrite : bool
        Replace the saved model that it holds.
    whole : nn.Module or None
        The model of sentence-transformers whose transformer is pruned, and which is saved with it.
    """

    directory: str | os.PathLike[str]
    overwrite: bool = False
    whole: nn.Module | None = None

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: object = None,
        *,
        work_dir: str | os.PathLike[str] | None = None,
        recorded: bool = True,
    ) -> None:
        """All that can be known of saving before there is a result.

        Parameters
        ----------
        model : PreTrainedModel
            The dense one.
        tokenizer : PreTrainedTokenizerBase, optional
        work_dir : path, optional
            Of a run that keeps what it has finished; its own result may be there already.
        recorded : bool
            Whether the result will have sizes that its config cannot say.

        Raises
        ------
        SaveError
        """
        if not isinstance(model, PreTrainedModel):
            return  # and cannot be pruned either, which is an error of its own
        check_apart(self.directory, model.name_or_path)
        check_working_folder(self.directory, work_dir)
        check_can_be_saved(model, tokenizer, recorded=recorded)
        if work_dir is None or self._run() is None:
            broadcast(lambda: check_output_directory(self.directory, self.overwrite))

    def finished(self, run: Mapping[str, str], **options: Any) -> PruningResult | None:
        """The result of a run, where that is what the folder holds.

        Raises
        ------
        SaveError
            If it holds another's, and that may not be replaced.
        """
        before = self._run()
        if before is None:
            return None
        differing = differences(before, run)
        if not differing:
            return saved_result(Path(self.directory), **options)
        if not self.overwrite:
            raise SaveError(
                f"{str(self.directory)!r} holds the result of another run: {differing}. Choose "
                "another directory, or pass overwrite=True to replace it."
            )
        return None

    def _run(self) -> dict[str, str] | None:
        return broadcast(lambda: run_of(Path(os.path.realpath(self.directory))))

    def save(self, result: PruningResult) -> None:
        """Save a result; of several processes the first does.

        Raises
        ------
        SaveError
            Its ``result`` is the result, and its message says where that is kept.
        """
        if self.whole is not None:
            result = result.inside(self.whole)
        try:
            broadcast(lambda: result.save(self.directory, overwrite=self.overwrite))
        except Exception as error:
            if rank() > 0:
                raise
            kept = keep_beside(self.directory, result)
            where = (
                f"The pruned model is kept in {str(kept)!r} (weights, config, report and plan)"
                if kept is not None
                else "No other place was found for the pruned model"
            )
            raise SaveError(
                f"{error} {where}; in Python it is the `result` of this error.", result=result
            ) from error


def keep_beside(directory: str | os.PathLike[str], result: PruningResult) -> Path | None:
    """Write what is left of a result that could not be saved, beside its folder or where it can be.

    Returns
    -------
    Path or None
        The folder; None where nothing can be written.
    """
    wanted = Path(os.path.realpath(directory))
    for parent in (wanted.parent, Path(tempfile.gettempdir())):
        folder = parent / f"{wanted.name[:200]}.unsaved-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True)
            _write(folder, result)
        except Exception:  # the disk may be full, or what failed before fails again
            shutil.rmtree(folder, ignore_errors=True)
            continue
        return folder
    return None


def _write(folder: Path, result: PruningResult) -> None:
    """Without what transformers checks, as it may have refused it."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    model = transformer_of(result.model)
    for name, tensor in stored_tensors(model):
        stored = tensor.detach().cpu().contiguous()
        # Tied weights are written as often as they are named.
        tensors[name] = stored.clone() if stored.data_ptr() in seen else stored
        seen.add(stored.data_ptr())
    save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    text = json.dumps(config, indent=2, default=str)
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / REPORT_FILE).write_text(result.report.to_json(), encoding="utf-8")
    (folder / PLAN_FILE).write_text(json.dumps(result.plan), encoding="utf-8")
