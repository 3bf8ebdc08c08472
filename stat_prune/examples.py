"""From whatever holds the user's data to single examples: texts, pairs of texts, or token ids."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from stat_prune.errors import DataError
from stat_prune.input_rows import TokenRow, holds_model_inputs, input_rows, is_batch

Example: TypeAlias = str | tuple[str, str] | TokenRow

Label: TypeAlias = int | float

LabelledExample: TypeAlias = tuple[Example, Label | None]

TEXT_PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "context"),
    ("question", "sentence"),
    ("query", "passage"),
    ("#1 String", "#2 String"),
)
TEXT_COLUMNS = ("text", "sentence", "content", "document", "article", "passage", "story", "prompt")

LABEL_COLUMNS = ("labels", "label")

# A name that ends in one of these is meant as a file, not as a dataset of the Hub.
FILE_SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")

# Streams cannot be permuted; datasets shuffles them within a window.
STREAM_SHUFFLE_BUFFER = 10_000


def iterate_examples(dataset: Any, *, seed: int) -> Iterator[Example]:
    """Read single examples in a random order, lazily, blank texts left out.

    Parameters
    ----------
    dataset : object
        See `stat_prune.calibration.build_calibration_set`.
    seed : int
        Of the permutation. Data without length and index (a ``DataLoader``, a generator) is read in
        its own order; a ``datasets.IterableDataset`` is shuffled within a window of 10,000.

    Yields
    ------
    str, tuple of two str, or dict of str to 1-D int64 Tensor

    Raises
    ------
    DataError
        If the source cannot be found or read, or an element is none of the forms above.
    """
    for example, _label in iterate_labelled_examples(dataset, seed=seed):
        yield example


def iterate_labelled_examples(dataset: Any, *, seed: int) -> Iterator[LabelledExample]:
    """`iterate_examples`, with what a column ``labels`` or ``label`` holds.

    A label is one number an example; it is None where there is no such column, where it holds
    anything else (names of classes, one label a token), and for plain texts.
    """
    for example, label in _shuffled_examples(_open(dataset), seed):
        if isinstance(example, dict) or _is_text(example):
            yield example, label


def _shuffled_examples(source: Any, seed: int) -> Iterator[LabelledExample]:
    if isinstance(source, (list, tuple)):
        # Lists may hold whole batches: take them apart first, so that examples are permuted.
        examples = [example for element in source for example in _as_examples(element)]
        random.Random(seed).shuffle(examples)
        yield from examples
        return
    for element in _shuffled_elements(source, seed):
        yield from _as_examples(element)


def _shuffled_elements(source: Any, seed: int) -> Iterator[Any]:
    if _is_of_datasets(source, "IterableDataset"):
        yield from source.shuffle(seed=seed, buffer_size=STREAM_SHUFFLE_BUFFER)
    elif isinstance(source, Sized) and hasattr(source, "__getitem__"):
        for index in np.random.default_rng(seed).permutation(len(source)).tolist():
            yield source[index]
    elif isinstance(source, Iterable):
        yield from source
    else:
        raise DataError(
            f"A {type(source).__name__} is no dataset. Pass a list of strings, a datasets.Dataset, "
            "a DataLoader, an iterable of model inputs, the name of a dataset, or a path."
        )


def _open(dataset: Any) -> Any:
    """Resolve names, paths and dictionaries of splits to something that can be iterated."""
    if isinstance(dataset, (str, Path)):
        path = Path(dataset)
        if path.is_file():
            return _read_file(path)
        if path.is_dir():
            dataset = _read_folder(path)
        elif path.is_absolute() or path.suffix.lower() in FILE_SUFFIXES:
            raise DataError(f"There is no file {path} to read examples from.")
        else:
            dataset = _load_by_name(str(dataset))
    if _is_of_datasets(dataset, "DatasetDict", "IterableDatasetDict"):
        return _training_split(dataset)
    if isinstance(dataset, (Mapping, Tensor)):  # one batch of model inputs
        return [dataset]
    return dataset


def _is_of_datasets(value: Any, *classes: str) -> bool:
    """Whether it is of one of these classes of the library datasets.

    Who has such an object has imported the library, which takes tens of megabytes with what it
    brings; it is not imported for a list.
    """
    library = sys.modules.get("datasets")
    return library is not None and isinstance(
        value, tuple(getattr(library, name) for name in classes)
    )


def _training_split(splits: Mapping[str, Any]) -> Any:
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise DataError(
        f"The dataset has the splits {sorted(splits)} and none is called 'train'. "
        "Pass one of them: dataset[split]."
    )


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
        except (OSError, ValueError, RuntimeError) as error:
            reason = error
            break
    raise DataError(
        f"The dataset {name!r} is neither a local path nor could it be loaded by name ({reason}). "
        "Without access to the Hub, pass a file (.txt with one example a line, .jsonl, .csv, .tsv) "
        "or a folder written by Dataset.save_to_disk. A single string to calibrate on belongs in "
        "a list."
    ) from reason


def _read_folder(path: Path) -> Any:
    import datasets

    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        return datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"The folder {path} holds no readable dataset: {error}") from error


def _read_file(path: Path) -> list[Any]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            match path.suffix.lower():
                case ".jsonl" | ".ndjson":
                    return [json.loads(line) for line in file if line.strip()]
                case ".json":
                    content = json.load(file)
                    return content if isinstance(content, list) else [content]
                case ".csv":
                    return list(csv.DictReader(file))
                case ".tsv":
                    # GLUE's convention: quotes are ordinary characters
                    return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
                case _:
                    return [line.rstrip("\r\n") for line in file]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"The file {path} cannot be read as a dataset: {error}") from error


def _as_examples(element: Any) -> Iterable[LabelledExample]:
    """Take one element of a dataset apart: a text, a pair, a record, one row or a batch of ids."""
    if isinstance(element, str):
        return [(element, None)]
    if isinstance(element, Mapping):
        if holds_model_inputs(element):
            rows = input_rows(element)
            return zip(rows, _labels_of(element, len(rows)), strict=True)
        return [(_text_of(element), _labels_of(element, 1)[0])]
    if isinstance(element, (Tensor, np.ndarray)):
        return [(row, None) for row in input_rows({"input_ids": element})]
    if isinstance(element, Sequence) and element:
        if len(element) == 2 and all(isinstance(part, str) for part in element):
            return [((element[0], element[1]), None)]
        if all(isinstance(part, int) for part in element):
            return [(row, None) for row in input_rows({"input_ids": element})]
    raise DataError(
        f"An example must be a string, a pair of strings, a record with a text column, or model "
        f"inputs with 'input_ids'; got {type(element).__name__}: {str(element)[:80]!r}."
    )


def _text_of(record: Mapping[str, Any]) -> str | tuple[str, str]:
    for first, second in TEXT_PAIR_COLUMNS:
        if isinstance(record.get(first), str) and isinstance(record.get(second), str):
            return record[first], record[second]
    for name in TEXT_COLUMNS:
        if isinstance(record.get(name), str):
            return record[name]
    pairs = ", ".join(f"{first}/{second}" for first, second in TEXT_PAIR_COLUMNS)
    raise DataError(
        f"No text column and no 'input_ids' among the columns {sorted(map(str, record))}. "
        f"Rename the column with the text to one of {', '.join(TEXT_COLUMNS)} or to one of the "
        f"pairs {pairs}, or pass a list of strings."
    )


def _labels_of(record: Mapping[str, Any], count: int) -> list[Label | None]:
    """The label of each of `count` examples; None for all where they are not one number each."""
    value = next((record[name] for name in LABEL_COLUMNS if record.get(name) is not None), None)
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    batched = holds_model_inputs(record) and is_batch(record)
    values = value if batched and isinstance(value, Sequence) else [value]
    labels = [_number(one) for one in values]
    return labels if len(labels) == count and None not in labels else [None] * count


def _number(value: Any) -> Label | None:
    if isinstance(value, (np.generic, Tensor)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):  # of a CSV file
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value if isinstance(value, (int, float)) else None


def _is_text(example: str | tuple[str, str]) -> bool:
    return bool(example.strip() if isinstance(example, str) else "".join(example).strip())
