"""The safetensors files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from stat_prune.errors import LoadError


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all of them there."""
    if not folder.is_dir():
        raise LoadError(f"{str(folder)!r} is not a folder. Pass the folder of a checkpoint.")
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if not index.is_file():
        raise LoadError(
            f"{str(folder)!r} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}. Save "
            "the model with save_pretrained, which writes safetensors: only those are read, as "
            "pickled weights (.bin, .pt) can run code."
        )
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()), key=str)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(index, error) from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise _damaged(index, ValueError("it names files that are not in its folder"))
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise LoadError(
            f"{str(folder)!r} lacks {len(missing)} of the {len(files)} shards that its index "
            f"names, such as {missing[0]}. Download or copy the checkpoint again."
        )
    return files


def keys_in(file: Path) -> list[str]:
    """Names in a safetensors file, whose length is checked against its header."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> LoadError:
    return LoadError(
        f"{str(file)!r} is damaged or cannot be read: {error}. Download or copy the file again."
    )


def read_weight(file: Path, key: str) -> Tensor:
    """A tensor in memory of its own: pages of the file are counted while it is mapped."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(key).clone()
            return tensor
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error
