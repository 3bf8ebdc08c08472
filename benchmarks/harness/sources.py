"""Where models and data come from: a folder, the folder that STAT_PRUNE_DATA names, or the Hub.

The local form: ``models/<name>`` and ``data/<benchmark>/...`` below ``STAT_PRUNE_DATA``.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from harness.task import Loaded
from stat_prune.errors import DataError


def local_data() -> Path | None:
    """The folder that ``STAT_PRUNE_DATA`` names, if it names one."""
    named = os.environ.get("STAT_PRUNE_DATA")
    return Path(named) if named else None


def data_folder() -> Path:
    """`local_data`, for what can be found nowhere else.

    Raises
    ------
    DataError
        If ``STAT_PRUNE_DATA`` is not set.
    """
    folder = local_data()
    if folder is None:
        raise DataError("Set STAT_PRUNE_DATA to the folder that holds models/ and data/.")
    return folder


def find_data(given: Path | None, *names: str) -> Path | None:
    """The path given, else the first of these below ``data/`` that exists; None for the Hub."""
    if given is not None or local_data() is None:
        return given
    candidates = [data_folder() / "data" / name for name in names]
    return next((path for path in candidates if path.exists()), None)


def find_model(name: str) -> str:
    """A folder, as it is or below ``models/``; else the name of a model of the Hub."""
    folder = local_data()
    if folder is not None and not Path(name).exists() and (folder / "models" / name).is_dir():
        return str(folder / "models" / name)
    return name


def load(
    name: str | Path,
    auto_class: type = AutoModel,
    *,
    device: str | None = None,
    dtype: str = "float32",
) -> Loaded:
    """A model and its tokenizer."""
    model = auto_class.from_pretrained(name, dtype=getattr(torch, dtype)).eval()
    return model.to(device or "cpu"), AutoTokenizer.from_pretrained(name)
