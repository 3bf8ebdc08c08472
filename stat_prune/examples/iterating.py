"""From whatever holds the user's data to single examples: texts, pairs of texts, or token ids."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from stat_prune.errors import CalibrationWarning, DataError
from stat_prune.examples.data_files import open_named
from stat_prune.examples.input_rows import TokenRow, holds_model_inputs, input_rows
from stat_prune.examples.records import (
    Label,
    Text,
    has_preferences,
    is_blank,
    labels_of,
    no_text,
    text_of,
)
from stat_prune.examples.tables import Records, by_position, is_columns, plain

Example: TypeAlias = Text | TokenRow

LabelledExample: TypeAlias = tuple[Example, Label | None]

# Streams cannot be permuted; datasets shuffles them within a window.
STREAM_SHUFFLE_BUFFER = 10_000


def iterate_examples(dataset: Any, *, seed: int) -> Iterator[Example]:
    """Read single examples in a random order, lazily, texts that are blank or null left out.

    Parameters
    ----------
    dataset : object
        See `stat_prune.data.calibration.build_calibration_set`.
    seed : int
        Of the permutation. Data without length and index (a ``DataLoader``, a generator) is read in
        its own order; a ``datasets.IterableDataset`` is shuffled within a window of 10,000.

    Yields
    ------
    str, tuple of two str, Words, Chat, or dict of str to 1-D int64 Tensor

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
    found = missing = 0
    for example, label in _shuffled_examples(_open(dataset), seed):
        if example is None:
            missing += 1
        elif isinstance(example, dict) or not is_blank(example):
            found += 1
            yield example, label
    if missing and not found:
        raise DataError(
            f"No example of the dataset has a text: {missing} of them are null, in whole or in the "
            "columns that are read. Fill these, or pass the texts as a list of strings."
        )


def _shuffled_examples(source: Any, seed: int) -> Iterator[tuple[Example | None, Label | None]]:
    if isinstance(source, (list, tuple)):
        # Lists may hold whole batches: take them apart first, so that examples are permuted.
        examples = list(_taken_apart(enumerate(source)))
        random.Random(seed).shuffle(examples)
        yield from examples
        return
    yield from _taken_apart(_shuffled_elements(source, seed))


def _taken_apart(
    elements: Iterable[tuple[int, Any]],
) -> Iterator[tuple[Example | None, Label | None]]:
    noted = False
    for number, element in elements:
        if not noted and isinstance(element, Mapping) and has_preferences(element):
            noted = True
            warnings.warn(
                "The dataset has chosen and rejected answers: the chosen ones are read, behind "
                "their prompts where these have a column of their own.",
                CalibrationWarning,
                stacklevel=2,
            )
        try:
            examples = _as_examples(element)
        except DataError as error:
            raise DataError(f"In row {number} of the dataset (the first is 0): {error}") from error
        yield from examples


def _shuffled_elements(source: Any, seed: int) -> Iterator[tuple[int, Any]]:
    """Elements and where they are, or, of streams, how many came before."""
    if _is_of_datasets(source, "IterableDataset"):
        yield from enumerate(source.shuffle(seed=seed, buffer_size=STREAM_SHUFFLE_BUFFER))
    elif isinstance(source, DataLoader) and source.batch_sampler is not None:
        # strings are collated to a list, of which two would be taken for a pair
        for number, batch in enumerate(source):
            yield number, {"text": batch} if _are_strings(batch) else batch
    elif isinstance(source, IterableDataset):
        yield from enumerate(source)  # it may have a length, but nothing by position
    elif isinstance(source, Sized) and hasattr(source, "__getitem__"):
        for index in np.random.default_rng(seed).permutation(len(source)).tolist():
            yield index, _element(source, index)
    elif isinstance(source, Iterable):
        yield from enumerate(source)
    else:
        raise DataError(
            f"A {type(source).__name__} is no dataset. Pass a list of strings, a datasets.Dataset, "
            "a DataLoader, an iterable of model inputs, the name of a dataset, or a path."
        )


def _are_strings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value)


def _element(source: Any, index: int) -> Any:
    try:
        return source[index]
    except (LookupError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"A {type(source).__name__} of length {len(source)} has no element {index} "
            f"({type(error).__name__}: {error}). Pass its elements as a list, or an iterator."
        ) from error


def _open(dataset: Any) -> Any:
    """Resolve names, paths and dictionaries of splits to something that can be iterated."""
    if isinstance(dataset, (str, Path)):
        dataset = open_named(dataset)
    if _is_of_datasets(dataset, "DatasetDict", "IterableDatasetDict"):
        return _training_split(dataset)
    if isinstance(dataset, (Mapping, Tensor)):  # one batch of model inputs, or of columns
        return [dataset]
    return by_position(dataset)


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


def _as_examples(element: Any) -> list[tuple[Example | None, Label | None]]:
    """Take one element of a dataset apart: a text, a pair, a record, one row or a batch of ids."""
    element = plain(element)
    if element is None or isinstance(element, str):
        return [(element, None)]
    if isinstance(element, Mapping):
        return _of_mapping(element)
    if isinstance(element, (Tensor, np.ndarray)):
        return [(row, None) for row in input_rows({"input_ids": element})]
    if isinstance(element, Sequence) and element:
        if all(isinstance(part, str | None) for part in element) and len(element) == 2:
            return [(None if None in element else (element[0], element[1]), None)]
        if len(element) == 2 and isinstance(element[0], str) and isinstance(element[1], Real):
            return [(element[0], labels_of({"label": element[1]}, 1)[0])]
        if all(isinstance(part, Integral) for part in element):
            return [(row, None) for row in input_rows({"input_ids": element})]
    raise DataError(
        f"An example must be a string, a pair of strings, a record with a text column, or model "
        f"inputs with 'input_ids' (words already split: {{'tokens': [...]}}); got "
        f"{type(element).__name__}: {str(element)[:80]!r}."
    )


def _of_mapping(element: Mapping[str, Any]) -> list[tuple[Example | None, Label | None]]:
    if holds_model_inputs(element):
        rows = input_rows(element)
        return list(zip(rows, labels_of(element, len(rows)), strict=True))
    try:
        return [(text_of(element), labels_of(element, 1)[0])]
    except LookupError:
        if not is_columns(element):
            raise no_text(element) from None
    records = Records(element)
    return [part for index in range(len(records)) for part in _as_examples(records[index])]
