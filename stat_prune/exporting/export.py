"""Which module writes which form, and where to."""

from __future__ import annotations

import inspect
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.beside import source_of
from stat_prune.checkpoints.checkpoint import check_output_directory
from stat_prune.checkpoints.replacing import check_apart, write_manifest
from stat_prune.errors import SaveError, SettingsError, StatPruneError, UnsupportedArchitectureError
from stat_prune.machine.atomic import replace_directory
from stat_prune.settings.arguments import check_path

#: What a model can be written as, and the module and function that write it.
FORMATS = {
    "gguf": ("gguf_file", "write_gguf"),
    "mlx": ("mlx_folder", "write_mlx"),
    "onnx": ("graphs", "write_onnx"),
    "openvino": ("graphs", "write_openvino"),
    "transformers": ("plain", "write_plain"),
}
_FILES = ("gguf",)

#: A GGUF file begins with it: no other file is replaced.
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path : Path
        A file (GGUF) or a folder.
    notes : tuple of str
        What is other than might be expected, such as neurons of zeros that fill up rows.
    """

    path: Path
    notes: tuple[str, ...]


def export(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    to: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Exported:
    """Write a model, pruned or not, in a form that other programs read.

    Parameters
    ----------
    model : PreTrainedModel
        Unchanged.
    path : path
        Of the file (GGUF) or folder; it appears in one step when it is complete.
    to : str
        A key of `FORMATS`.
    tokenizer : PreTrainedTokenizerBase, optional
    overwrite : bool
        Replace what is there.
    **options
        Of the form; see the functions that `FORMATS` names.

    Returns
    -------
    Exported

    Raises
    ------
    SettingsError
        If there is no such form or option.
    UnsupportedArchitectureError
        If the program cannot hold the model; the message says what to prune instead.
    SaveError
        If something is at `path` and `overwrite` is False, or it is not what was written there
        before; if the model came from there; or writing fails.
    """
    if to not in FORMATS:
        raise SettingsError(f"to={to!r} is none of {', '.join(FORMATS)}.")
    module, function = FORMATS[to]
    write: Callable[..., list[str]] = getattr(
        import_module(f"stat_prune.exporting.{module}"), function
    )
    known = [
        name
        for name, parameter in inspect.signature(write).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in options:
        if name not in known:
            raise SettingsError(
                f"{name!r} is no option of to={to!r}, which has {', '.join(known) or 'none'}."
            )
    record = getattr(model.config, "stat_prune", None) or {}
    if to in ("gguf", "mlx") and {"embeddings", "lm_head"} & record.keys():
        raise UnsupportedArchitectureError(
            f"The token embeddings or the head of this model are two factors, which to={to!r} has "
            "no form for. Prune its blocks alone, or export it to onnx or openvino."
        )
    check_path("path", path)
    place = Path(path)
    if to not in _FILES:
        check_apart(place, source_of(model), "exported")
    with (_replace_file if to in _FILES else _replace_folder)(place, overwrite) as new:
        notes = write(model, tokenizer, new, **options)
    return Exported(place, tuple(notes))


@contextmanager
def _replace_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    check_output_directory(path, overwrite)
    try:
        check = partial(check_output_directory, path, overwrite)
        with replace_directory(path, check, exchange=overwrite) as folder:
            yield folder
            write_manifest(folder)
    except OSError as error:
        raise _not_written(path, error) from error


@contextmanager
def _replace_file(path: Path, overwrite: bool) -> Iterator[Path]:
    if path.is_dir():
        raise SaveError(f"{str(path)!r} is a folder. Name a file, such as model.gguf.")
    if path.exists():
        if not overwrite:
            raise SaveError(
                f"{str(path)!r} exists; pass overwrite=True (--overwrite) to replace it."
            )
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) not in (_MAGIC, b""):
                raise SaveError(f"{str(path)!r} is no GGUF file. Choose another name.")
    new = path.with_name(f"{path.name}.saving-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        os.replace(new, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        new.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> OSError:
    if isinstance(error, StatPruneError):
        return error
    return SaveError(
        f"{str(path)!r} could not be written: {error}. What was there is untouched. Free some "
        "space or choose another place."
    )
