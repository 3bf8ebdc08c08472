"""Questions and answers of SQuAD, from the published files or the Hub.

References
----------
.. [1] Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016.
.. [2] Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD", ACL
   2018.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stat_prune.errors import DataError
from stat_prune.evaluation.hub import hub_rows
from stat_prune.examples.text_files import reading_text

HUB_NAMES = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}
HUB_SPLITS = {"train": "train", "dev": "validation"}


@dataclass(frozen=True)
class Question:
    """One question about one paragraph.

    Attributes
    ----------
    id, text, context : str
    answers : tuple of str
        As annotators marked them in the context; none where the context has no answer.
    starts : tuple of int
        The first character of each answer in the context.
    """

    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


def read_squad(
    path: str | Path | None = None, *, version: str = "1.1", split: str = "dev"
) -> list[Question]:
    """Read one split of SQuAD.

    Parameters
    ----------
    path : path, optional
        A file in the published form (``{"data": [{"paragraphs": ...}]}``). Default: the Hub's copy
        of `version` and `split`.
    version : {"1.1", "2.0"}
        Of the Hub's copy; a file says by itself which questions have no answer.
    split : {"train", "dev"}

    Raises
    ------
    DataError
        If the data cannot be found or read, or has no question.
    """
    if path is not None:
        questions = _from_file(Path(path))
    elif version in HUB_NAMES and split in HUB_SPLITS:
        questions = _from_hub(version, split)
    else:
        raise DataError(
            f"SQuAD has the versions {', '.join(HUB_NAMES)} and the splits {', '.join(HUB_SPLITS)};"
            f" got {version!r} and {split!r}."
        )
    if not questions:
        raise DataError(f"{path} holds no question.")
    return questions


def _from_file(path: Path) -> list[Question]:
    try:
        with reading_text(path) as file:
            text = file.read()
        return [
            _question(entry, paragraph["context"], entry.get("answers", []))
            for paragraph in _paragraphs(json.loads(text)["data"])
            for entry in paragraph["qas"]
        ]
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not as SQuAD publishes its files: {error!r}.") from error


def _paragraphs(articles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for article in articles:
        yield from article["paragraphs"]


def _question(entry: dict[str, Any], context: str, answers: list[dict[str, Any]]) -> Question:
    return Question(
        entry["id"],
        entry["question"],
        context,
        tuple(answer["text"] for answer in answers),
        tuple(int(answer["answer_start"]) for answer in answers),
    )


def _from_hub(version: str, split: str) -> list[Question]:
    rows = hub_rows(
        HUB_NAMES[version],
        HUB_SPLITS[split],
        instead=f"the published file {split}-v{version}.json",
    )
    return [
        Question(
            row["id"],
            row["question"],
            row["context"],
            tuple(row["answers"]["text"]),
            tuple(row["answers"]["answer_start"]),
        )
        for row in rows
    ]
