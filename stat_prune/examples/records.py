"""What records with columns hold: texts, pairs of texts, conversations, words; and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from stat_prune.errors import DataError
from stat_prune.examples.input_rows import holds_model_inputs, is_batch
from stat_prune.examples.tables import plain


@dataclass(frozen=True)
class Words:
    """A text that is split into words, which the tokenizer is to split further."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Chat:
    """A conversation: messages with a ``role`` and ``content``, for the chat template."""

    messages: tuple[Mapping[str, Any], ...]


Text: TypeAlias = str | tuple[str, str] | Words | Chat

Label: TypeAlias = int | float

LABEL_COLUMNS = ("labels", "label")

#: Who speaks, in the form that ShareGPT has made common.
ROLES = {"human": "user", "gpt": "assistant"}


def _texts(*values: Any) -> Text | None:
    if not all(isinstance(value, str) for value in values):
        return None
    return values[0] if len(values) == 1 else values


def _instruction(instruction: Any, material: Any, output: Any) -> Text | None:
    """Alpaca's form: what the instruction is about has a column of its own, blank if it is none."""
    if not isinstance(material, str) or not material.strip():
        return _texts(instruction, output)
    if not isinstance(instruction, str):
        return None
    return _texts(f"{instruction}\n{material}", output)


def _chat(*values: Any) -> Text | None:
    if not all(isinstance(value, (list, tuple, np.ndarray)) for value in values):
        return None
    messages = [_message(message) for value in values for message in value]
    return None if None in messages else Chat(tuple(m for m in messages if m is not None))


def _message(message: Any) -> Mapping[str, Any] | None:
    if not isinstance(message, Mapping):
        return None
    if isinstance(message.get("role"), str):
        return dict(message)
    speaker = message.get("from")
    if not isinstance(speaker, str) or "value" not in message:
        return None
    return {"role": ROLES.get(speaker, speaker), "content": message["value"]}


def _words(value: Any) -> Text | None:
    words = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        return None
    return Words(tuple(words))


#: Names of columns in the order in which they are looked for, and what is made of their values.
FORMS: tuple[tuple[tuple[str, ...], Callable[..., Text | None]], ...] = (
    (("sentence1", "sentence2"), _texts),
    (("premise", "hypothesis"), _texts),
    (("question1", "question2"), _texts),
    (("question", "context"), _texts),
    (("question", "sentence"), _texts),
    (("query", "passage"), _texts),
    (("#1 string", "#2 string"), _texts),
    (("text",), _texts),
    (("messages",), _chat),
    (("conversations",), _chat),
    (("conversation",), _chat),
    (("prompt", "completion"), _chat),
    (("prompt", "chosen"), _chat),
    (("chosen",), _chat),
    (("anchor", "positive"), _texts),
    (("query", "positive"), _texts),
    (("query", "document"), _texts),
    (("query", "answer"), _texts),
    (("query", "response"), _texts),
    (("question", "passage"), _texts),
    (("question", "answer"), _texts),
    (("question", "response"), _texts),
    (("sentence_a", "sentence_b"), _texts),
    (("text1", "text2"), _texts),
    (("text_a", "text_b"), _texts),
    (("instruction", "input", "output"), _instruction),
    (("instruction", "output"), _texts),
    (("instruction", "response"), _texts),
    (("prompt", "completion"), _texts),
    (("prompt", "response"), _texts),
    (("prompt", "chosen"), _texts),
    (("question", "chosen"), _texts),
    (("instruction", "chosen"), _texts),
    (("input", "chosen"), _texts),
    (("chosen",), _texts),
    (("input", "output"), _texts),
    (("source", "target"), _texts),
    (("sentence",), _texts),
    (("content",), _texts),
    (("document",), _texts),
    (("article",), _texts),
    (("passage",), _texts),
    (("story",), _texts),
    (("prompt",), _texts),
    (("tokens",), _words),
    (("words",), _words),
)


def text_of(record: Mapping[str, Any]) -> Text | None:
    """What a record holds in columns of the usual names; None where they are null.

    Raises
    ------
    LookupError
        If there are none of these columns, or they hold something else.
    """
    known = {str(name).strip().lower(): plain(value) for name, value in record.items()}
    present = [form for form in FORMS if all(name in known for name in form[0])]
    for names, read in present:
        text = read(*(known[name] for name in names))
        if text is not None:
            return text
    if any(known[name] is None for names, _ in present for name in names):
        return None
    raise LookupError


def has_preferences(record: Mapping[str, Any]) -> bool:
    """Whether a record has answers that were chosen and rejected."""
    return {"chosen", "rejected"} <= {str(name).strip().lower() for name in record}


def no_text(record: Mapping[str, Any]) -> DataError:
    """That a record has no text, and what to do."""
    columns = sorted(map(str, record))[:20]
    names = {name for names, _ in FORMS for name in names}
    held = [
        f"{name!r} holds a {type(value).__name__}, which is none. "
        for name, value in record.items()
        if str(name).strip().lower() in names and not isinstance(value, str)
    ]
    return DataError(
        f"No text column and no 'input_ids' among the columns {columns}. {''.join(held[:1])}"
        "Rename the column with the text to 'text', the columns with two texts to 'sentence1' and "
        "'sentence2'; messages with role and content belong in 'messages', words in 'tokens'. Or "
        "pass a list of strings."
    )


def labels_of(record: Mapping[str, Any], count: int) -> list[Label | None]:
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
                value = kind(value)
                break
            except ValueError:
                continue
    # what no tensor of integers holds is no class either
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return value if isinstance(value, (int, float)) else None


def is_blank(text: Text) -> bool:
    """Whether there is nothing to read in it."""
    match text:
        case str():
            return not text.strip()
        case Chat():
            return not text.messages
        case Words():
            return not "".join(text.words).strip()
        case _:
            return not "".join(text).strip()
