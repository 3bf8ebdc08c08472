"""What sentence-transformers keeps beside a transformer: pooling and all that comes behind it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

MODULES = "modules.json"

#: Of the whole encoder, and of how its transformer is called.
SETTINGS = ("config_sentence_transformers.json", "sentence_*_config.json")


def sentence_source(model: PreTrainedModel) -> Path | None:
    """The folder of the sentence encoder that a model is the transformer of; None if of none.

    It is where the model was loaded from: a folder, or the local copy of a repository of the Hub.
    """
    name = model.name_or_path
    if not name or model.base_model is not model:
        return None
    folder = Path(name)
    if not folder.is_dir():
        revision = getattr(model.config, "_commit_hash", None)
        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, ValueError):
            return None
    return folder if _folders_behind(folder) is not None else None


def download_sentence_modules(name: str) -> None:
    """Put what a repository of the Hub has beside its transformer into the local copy."""
    # What is missing, or out of reach, is no obstacle to pruning the transformer.
    try:
        snapshot_download(name, allow_patterns=[MODULES, *SETTINGS, "[0-9]*_*/*"])
    except (OSError, ValueError):
        return


def copy_sentence_modules(source: Path, folder: Path) -> None:
    """Copy what is not the transformer into the folder of another transformer."""
    shutil.copy(source / MODULES, folder)
    for pattern in SETTINGS:
        for path in source.glob(pattern):
            shutil.copy(path, folder)
    for name in _folders_behind(source) or ():
        # Modules without settings, such as Normalize, may have no folder.
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)


def _folders_behind(folder: Path) -> list[str] | None:
    """Folders of the modules behind the transformer; None where that is not in `folder` itself."""
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        first, *others = [(str(one["path"]), str(one["type"])) for one in modules]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Code of a repository's own is not copied.
    known = all(kind.startswith("sentence_transformers.") for _, kind in (first, *others))
    inside = all(path and os.path.basename(path) == path for path, _ in others)
    return [path for path, _ in others] if known and inside and first[0] == "" else None
