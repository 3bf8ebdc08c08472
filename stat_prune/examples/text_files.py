"""Text files as people's programs write them: with a byte order mark, in UTF-16, compressed."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from stat_prune.errors import DataError

# UTF-32 first: its little-endian mark begins as that of UTF-16.
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# The csv module refuses fields over 131,072 characters unless it is told otherwise.
_LONGEST_FIELD = 2**31 - 1


@contextmanager
def reading_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, without its byte order mark and with its line ends as they are.

    It is in UTF-8, or in UTF-16 or UTF-32 with a mark that says so; `.gz` is decompressed.

    Raises
    ------
    DataError
        If it cannot be read, here or while what is in it is read: no such file, another encoding,
        damaged, malformed CSV or JSON.
    """
    try:
        with _opened(path) as raw:
            encoding = _encoding_of(path, raw.peek(4096))  # type: ignore[attr-defined]
            with io.TextIOWrapper(raw, encoding=encoding, newline="") as file:
                yield file
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"There is no readable file {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"The file {path} is no text in UTF-8 ({error.reason}: {byte:#x}). Save it as UTF-8 "
            "(iconv -f latin1 -t utf-8 converts it), or as UTF-16 with a byte order mark."
        ) from error
    except (ValueError, EOFError, RecursionError, csv.Error, zlib.error) as error:
        raise DataError(f"The file {path} cannot be read as a dataset: {error}.") from error


@contextmanager
def long_fields() -> Iterator[None]:
    """Let the csv module read fields of any length meanwhile."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb"))


def _encoding_of(path: Path, start: bytes) -> str:
    for mark, encoding in _ENCODINGS:
        if start.startswith(mark):
            return encoding
    if b"\0" in start:
        raise DataError(
            f"The file {path} holds bytes that are zero: it is no text, or UTF-16 without a byte "
            "order mark. Save it as UTF-8; tables are read from .parquet and .arrow files."
        )
    return "utf-8"
