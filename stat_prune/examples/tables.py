"""Tables of pandas, pyarrow and polars, and dictionaries of columns, as records by position."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from stat_prune.errors import DataError


class Records:
    """Columns of one length, read row by row.

    Parameters
    ----------
    columns : mapping of str to sequence
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"The columns of the dataset differ in length: {lengths}.")
        self._columns, self._length = columns, next(iter(lengths.values()), 0)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: plain(column[index]) for name, column in self._columns.items()}


def by_position(source: Any) -> Any:
    """A table or series as what can be read by position; anything else as it is.

    The libraries are not imported for it: who has a table has imported its library.
    """
    if hasattr(source, "iloc"):  # pandas, whose own indexing goes by the index
        if not hasattr(source, "columns"):
            return source.array
        names = map(str, source.columns)
        return Records({name: source.iloc[:, at].array for at, name in enumerate(names)})
    if hasattr(source, "column_names") and hasattr(source, "to_pylist"):  # pyarrow
        return Records({name: source.column(at) for at, name in enumerate(source.column_names)})
    if hasattr(source, "iter_rows") and hasattr(source, "columns"):  # polars
        return Records({name: source[name] for name in source.columns})
    return source


def is_columns(record: Mapping[str, Any]) -> bool:
    """Whether each of its values has as many entries as the others: it may hold many records."""
    values = list(record.values())
    if not values or any(isinstance(value, (str, bytes, Mapping)) for value in values):
        return False
    columns = [v for v in values if isinstance(v, Sized) and hasattr(v, "__getitem__")]
    # a tensor of no dimension has a length only to say that it has none
    if len(columns) < len(values) or any(getattr(value, "ndim", 1) == 0 for value in columns):
        return False
    return len({len(value) for value in columns}) == 1


def plain(value: Any) -> Any:
    """A cell as Python has it; None for what stands for nothing in pandas and pyarrow."""
    if hasattr(value, "as_py"):
        value = value.as_py()
    missing = isinstance(value, float) and value != value
    return None if missing or type(value).__name__ in ("NAType", "NaTType") else value
