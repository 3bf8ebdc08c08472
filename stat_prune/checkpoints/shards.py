"""Safetensors files that were written one by one become the shards of one checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def join_shards(folder: Path, shards: Sequence[Path]) -> None:
    """Put files beside the ``model.safetensors`` of a folder, under the names of shards.

    Parameters
    ----------
    folder : Path
        Its ``model.safetensors`` becomes the first shard.
    shards : sequence of Path
        Linked where the file system allows, else copied.
    """
    total = 1 + len(shards)
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for number, source in enumerate([folder / SAFE_WEIGHTS_NAME, *shards], 1):
        name = f"model-{number:05d}-of-{total:05d}.safetensors"
        if source.parent == folder:
            source.rename(folder / name)
        else:
            _link(source, folder / name)
        with safe_open(folder / name, framework="pt") as opened:
            keys = list(opened.keys())
            num_bytes += sum(opened.get_tensor(key).nbytes for key in keys)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
