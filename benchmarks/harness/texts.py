"""Running text, as WikiText publishes it or as a list of passages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from stat_prune.errors import DataError

# So many words in a row are hardly ever the same in two articles.
WORDS_IN_A_ROW = 10


def read_texts(path: Path) -> list[str]:
    """The passages of a ``.json`` list, or a whole ``.txt`` file as one text.

    Raises
    ------
    DataError
        If it cannot be read, or holds no texts.
    """
    try:
        content = path.read_text(encoding="utf-8")
        texts = json.loads(content) if path.suffix == ".json" else [content]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise DataError(f"{path} is no list of texts.")
    return texts


def check_apart(calibration: Sequence[str], scored: Sequence[str]) -> None:
    """Refuse calibration texts with a paragraph of which half is in the texts that are scored.

    It goes by rows of ten words, whatever their case and punctuation, so that names of files and
    ways of tokenising do not matter.

    Raises
    ------
    DataError
        The message quotes the paragraph.
    """
    known = {row for text in scored for row in _rows(text)}
    for text in calibration:
        for paragraph in text.splitlines():
            rows = list(_rows(paragraph))
            if rows and 2 * sum(row in known for row in rows) >= len(rows):
                raise DataError(
                    f"The calibration text has a paragraph of the text that is scored: "
                    f"{paragraph.strip()[:80]!r}. Calibrate on the train split."
                )


def _rows(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    for start in range(len(words) - WORDS_IN_A_ROW + 1):
        yield tuple(words[start : start + WORDS_IN_A_ROW])
