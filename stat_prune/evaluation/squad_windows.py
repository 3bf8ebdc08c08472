"""Question and context as rows of tokens: a long context is read in windows that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from stat_prune.errors import DataError
from stat_prune.evaluation.squad_data import Question

# Devlin et al. 2019, section 4.2, and every recipe since: windows of 384 tokens, 128 of overlap.
MAX_SEQ_LENGTH, STRIDE = 384, 128
# A question that leaves no room for the context is cut; the longest of SQuAD's have 60 words.
MAX_QUESTION_LENGTH = 64


@dataclass(frozen=True)
class Window:
    """One row of tokens about one question.

    Attributes
    ----------
    question : int
        Index of the question.
    inputs : dict of str to list of int
        Model inputs.
    null : int
        Position of the token that stands for "no answer here": the classification token.
    offsets : list of (int, int) or None
        By position, the characters of the context that the token covers; None for every token that
        is not of the context.
    """

    question: int
    inputs: dict[str, list[int]]
    null: int
    offsets: list[tuple[int, int] | None]


def windows(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_seq_length: int = MAX_SEQ_LENGTH,
    stride: int = STRIDE,
) -> list[Window]:
    """Cut every question's context into windows, each behind the question.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A fast one, which knows the characters of its tokens.
    questions : sequence of Question
    max_seq_length : int
        Tokens a window, with question and special tokens.
    stride : int
        Tokens of the context that neighbouring windows share.

    Raises
    ------
    DataError
        If the tokenizer knows no characters, or the windows are too short for a question, the
        overlap and something new.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say which characters a token covers. Load the "
            "fast tokenizer of the model."
        )
    room = max_seq_length - tokenizer.num_special_tokens_to_add(pair=True) - MAX_QUESTION_LENGTH
    if room <= stride:
        raise DataError(
            f"Windows of {max_seq_length} tokens leave {room} for the context, which is not more "
            f"than the overlap of {stride}. Make max_seq_length longer or stride shorter."
        )
    encoded = tokenizer(
        [_shortened(tokenizer, question.text.strip()) for question in questions],
        [question.context for question in questions],
        truncation="only_second",
        max_length=max_seq_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    found = []
    for row, question in enumerate(encoded["overflow_to_sample_mapping"]):
        inputs = {name: encoded[name][row] for name in names}
        sequences = encoded.sequence_ids(row)
        found.append(
            Window(
                question,
                inputs,
                _null_position(tokenizer, inputs["input_ids"]),
                [
                    tuple(span) if sequence == 1 else None
                    for span, sequence in zip(
                        encoded["offset_mapping"][row], sequences, strict=True
                    )
                ],
            )
        )
    return found


def answer_positions(window: Window, question: Question) -> tuple[int, int]:
    """The first and last token of the first answer; twice `Window.null` where it is not inside."""
    null = window.null, window.null
    if not question.answers:
        return null
    first = question.starts[0]
    last = first + len(question.answers[0]) - 1
    covered = [
        (position, span)
        for position, span in enumerate(window.offsets)
        if span is not None and span[0] < span[1]
    ]
    start = [position for position, span in covered if span[0] <= first < span[1]]
    end = [position for position, span in covered if span[0] <= last < span[1]]
    return (start[0], end[0]) if start and end else null


def _shortened(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The question, cut behind `MAX_QUESTION_LENGTH` tokens."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"][:MAX_QUESTION_LENGTH]
    return text[: offsets[-1][1]] if offsets else text


def _null_position(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
