"""Datasets by name: files, folders, the Hub."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from stat_prune.errors import DataError
from stat_prune.examples.tables import by_position
from stat_prune.examples.text_files import long_fields, reading_text

#: A name that ends in one of these is meant as a file, not as a dataset of the Hub.
FILE_SUFFIXES = (
    *(".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"),
    *(".parquet", ".arrow", ".feather", ".gz"),
)


def open_named(name: str | Path) -> Any:
    """What a file or folder of this name holds, or a dataset of the Hub.

    Raises
    ------
    DataError
        If there is none, or it cannot be read.
    """
    # what is too long for a path, or has a character that none has, is none
    if os.path.isfile(name):
        return _read_file(Path(name))
    if os.path.isdir(name):
        return _read_folder(Path(name))
    path = Path(name)
    if path.is_absolute() or path.suffix.lower() in FILE_SUFFIXES:
        raise DataError(f"There is no file {_short(name)} to read examples from.")
    return _load_by_name(str(name))


def _read_file(path: Path) -> Any:
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in (".parquet", ".arrow", ".feather"):
        return by_position(_read_table(path, kind))
    with reading_text(path) as file, long_fields():
        match kind:
            case ".jsonl" | ".ndjson":
                return list(_json_lines(file))
            case ".json":
                return _json_document(file)
            case ".csv":
                return list(_csv_rows(file))
            case ".tsv":
                # GLUE's convention: quotes are ordinary characters
                return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
            case _:
                return [line.rstrip("\r\n") for line in file]


def _json_lines(file: TextIO) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error


def _csv_rows(file: TextIO) -> Iterator[dict[str, Any]]:
    lines: list[str] = []  # of the row that is being read

    def noted() -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    reader = csv.DictReader(noted())
    for row in reader:
        if len(lines) > 1 and _is_open(lines):
            first = reader.line_num - len(lines) + 1
            raise ValueError(f"a quote that is opened on line {first} is not closed")
        lines.clear()
        yield row


def _is_open(lines: list[str]) -> bool:
    """Whether the file has ended within a quoted field, which the csv module takes for its end."""
    try:
        list(csv.reader(lines, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _json_document(file: TextIO) -> Any:
    text = file.read()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        # many call a file of JSON lines .json
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return content if isinstance(content, list) else [content]


def _read_table(path: Path, kind: str) -> Any:
    # imported here, as it takes tens of megabytes
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        if kind == ".parquet":
            return parquet.read_table(path, memory_map=True)
        source = pyarrow.memory_map(str(path))
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        return (ipc.open_file if is_file else ipc.open_stream)(source).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"The file {path} cannot be read as a table ({error}). Write it again, for instance "
            "with datasets.Dataset.to_parquet(...), and do not compress it once more."
        ) from error


def _read_folder(path: Path) -> Any:
    import datasets

    if (path / "config.json").is_file() and not (path / "dataset_info.json").is_file():
        raise DataError(
            f"The folder {path} is that of a model, not of examples. Pass a file with examples, or "
            "a folder written by Dataset.save_to_disk."
        )
    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        return datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except Exception as error:  # of every kind, as the formats are many
        raise DataError(
            f"The folder {path} holds no readable dataset: {_first_line(error)}. Pass one file of "
            f"it ({', '.join(FILE_SUFFIXES)}), or a folder written by Dataset.save_to_disk."
        ) from error


def _load_by_name(name: str) -> Any:
    """Load from the Hub or its cache: "imdb", "glue/sst2", "owner/name" or "owner/name/config"."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    parts = name.split("/")
    # "glue/sst2" is a dataset with a configuration, "owner/name" a repository.
    attempts: list[tuple[str, ...]] = [("/".join(parts[:-1]), parts[-1])] if len(parts) > 1 else []
    if len(parts) < 3:
        attempts.append((name,))
    reason: Exception | None = None
    for attempt in attempts:
        try:
            return datasets.load_dataset(*attempt)
        except DatasetNotFoundError as error:
            reason = error
        except Exception as error:  # of every kind: the network, the formats, the name
            reason = error
            break
    raise DataError(
        f"The dataset {_short(name)!r} is neither a local path nor could it be loaded by name "
        f"({_first_line(reason)}). Without access to the Hub, pass a file (.txt with one example a "
        "line, .jsonl, .csv, .tsv, .parquet, .arrow; .gz of these) or a folder written by "
        "Dataset.save_to_disk. A single string to calibrate on belongs in a list."
    ) from reason


def _short(name: str | Path) -> str:
    """The name itself, but for texts that were taken for one."""
    text = str(name)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _first_line(error: Exception | None) -> str:
    cause = error if error is None or error.__cause__ is None else error.__cause__
    return _short(f"{cause}".strip().partition("\n")[0].rstrip(".") or type(cause).__name__)
