"""Which folder a saved model may take the place of: one of a saved model and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from stat_prune.errors import SaveError

#: What was done, in a saved folder: the report, and the units that are left.
REPORT_FILE, PLAN_FILE = "stat_prune_report.json", "stat_prune_plan.json"

#: Names every file that was saved with it, and the run that the result is of.
MANIFEST_FILE = "stat_prune_files.json"

#: What transformers, tokenizers, sentence-transformers and this package write. ``*`` is no slash.
_STOCK = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
    "[0-9]*_*/pytorch_model.bin",
    "modeling_stat_prune.py",
    REPORT_FILE,
    PLAN_FILE,
    MANIFEST_FILE,
)


def write_manifest(folder: Path, run: dict[str, str] | None = None) -> None:
    """Note in a folder what is in it, so that it can be told later from what others have added."""
    files = sorted(path.relative_to(folder).as_posix() for path in _contents(folder))
    content = {"files": [*files, MANIFEST_FILE], "run": run}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")


def written_files(folder: Path) -> list[str]:
    """What was saved to a folder, by names below it; nothing where that is not known."""
    files = _read_json(folder / MANIFEST_FILE).get("files")
    return list(files) if isinstance(files, list) else []


def run_of(folder: Path) -> dict[str, str] | None:
    """All that the result in a folder depends on, by what it is; None where that is not known."""
    run = _read_json(folder / MANIFEST_FILE).get("run")
    return dict(run) if isinstance(run, dict) else None


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In what two fingerprints differ, told of the first few; ``""`` where they are one."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in names[:3])


def check_replaceable(folder: Path) -> None:
    """Refuse to replace what is no saved model, or holds more than one.

    Raises
    ------
    SaveError
        Naming what would be lost.
    """
    contents = list(_contents(folder))
    if not contents:
        return
    written = set(written_files(folder))
    config = _read_json(folder / "config.json")
    known = {"transformers_version", "architectures"} & config.keys()
    there = (folder / "config.json").exists()
    if (there or not written) and not (known and isinstance(config.get("model_type"), str)):
        what = "a config.json that is not of a transformers model"
        what = what if there else "files but no config.json"
        raise SaveError(
            f"{str(folder)!r} holds {what}: it is not a saved model, and overwriting would delete "
            f"all in it, such as {_shown(contents, folder)}. Choose another directory."
        )
    others = [path for path in contents if not _is_written(path, folder, written)]
    if others:
        raise SaveError(
            f"{str(folder)!r} holds more than a saved model: overwriting would delete "
            f"{_shown(others, folder)}, too. Move that away, or choose another directory."
        )


def check_apart(
    directory: str | os.PathLike[str],
    source: str | os.PathLike[str] | None,
    doing: str = "pruned",
) -> None:
    """Refuse an output folder where saving would take something from the input's.

    Parameters
    ----------
    directory : path
        Where the result is to go.
    source : path or None
        Where the model came from; a name that is no folder has nothing to lose.
    doing : str
        What is to be done with it, for the error.

    Raises
    ------
    SaveError
        If one is the other, whatever they are called, or holds it, or a file of both is one.
    """
    if not source or not os.path.isdir(source):
        return
    of = f"the model that is to be {doing}"
    output, origin = Path(os.path.realpath(directory)), Path(os.path.realpath(source))
    if _is_one(output, origin):
        relation = f"is the folder of {of}"
    elif any(_is_one(output, parent) for parent in origin.parents):
        relation = f"holds {of}, {str(source)!r}"
    elif not output.exists():
        return
    elif any(_is_one(origin, parent) for parent in output.parents):
        relation = f"is in the folder of {of}, {str(source)!r}"
    elif (linked := _linked(output, origin)) is not None:
        relation = f"holds {linked}, which is linked with {of}"
    else:
        return
    raise SaveError(
        f"{str(directory)!r} {relation}, which would be lost. Choose another directory."
    )


def check_working_folder(
    directory: str | os.PathLike[str], work_dir: str | os.PathLike[str] | None
) -> None:
    """Refuse a working folder that holds the output, or is in it: one goes when the other comes.

    Raises
    ------
    SaveError
    """
    if work_dir is None:
        return
    output, working = Path(os.path.realpath(directory)), Path(os.path.realpath(work_dir))
    if output == working or output in working.parents or working in output.parents:
        raise SaveError(
            f"The working folder {str(work_dir)!r} and the output {str(directory)!r} are one in "
            "the other, and the working folder is deleted at the end. Put them side by side."
        )


def _contents(folder: Path) -> Iterator[Path]:
    """Files, links and empty folders in a folder, however deep."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        yield from (Path(place, name) for name in sorted([*files, *links]))
        if not folders and not files and Path(place) != folder:
            yield Path(place)


def _is_written(path: Path, folder: Path, written: set[str]) -> bool:
    """Whether a manifest, or what is known of saved models, says how a file came there."""
    if path.is_symlink() or not path.is_file():
        return False
    name = path.relative_to(folder).as_posix()
    if name == "README.md" and name not in written:  # a model card, or what someone wrote
        with path.open("rb") as file:
            return file.read(3) == b"---"
    return name in written or any(_matches(name, pattern) for pattern in _STOCK)


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _shown(paths: Iterable[Path], folder: Path, most: int = 3) -> str:
    """The first few, each by what it is in the folder itself."""
    names = list(dict.fromkeys(path.relative_to(folder).parts[0] for path in paths))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def _is_one(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # one of them is not there
        return False


def _linked(output: Path, origin: Path) -> str | None:
    """A file in one folder that is a file of the other, too."""

    def identities(folder: Path) -> dict[tuple[int, int], Path]:
        found = {}
        for path in _contents(folder):
            if path.exists():
                status = path.stat()
                found[status.st_dev, status.st_ino] = path
        return found

    theirs = identities(origin)
    for identity, path in identities(output).items():
        if identity in theirs:
            return repr(path.relative_to(output).as_posix())
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """An object in a file; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
