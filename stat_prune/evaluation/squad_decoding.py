"""From the logits of starts and ends to an answer: the best spans of all windows of a question.

References
----------
.. [1] Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
   Understanding", NAACL 2019, section 4.2 and 4.3: a span's score is the sum of the logits of its
   ends, and no answer scores as the span of the classification token alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stat_prune.evaluation.squad_data import Question
from stat_prune.evaluation.squad_windows import Window


@dataclass(frozen=True)
class Span:
    """A candidate.

    Attributes
    ----------
    score : float
        Sum of the logits of its first and last token.
    text : str
    """

    score: float
    text: str


def best_spans(
    windows: Sequence[tuple[Window, np.ndarray, np.ndarray]],
    question: Question,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> list[Span]:
    """The `n_best` spans of all windows of a question, the best one first.

    Parameters
    ----------
    windows : sequence of (Window, ndarray of shape (length,), ndarray of shape (length,))
        With the logits of starts and of ends.
    question : Question
    n_best : int
        Also the number of starts, and of ends, that are looked at in each window.
    max_answer_length : int
        Tokens of an answer at most.
    """
    spans = [
        span
        for window, starts, ends in windows
        for span in _window_spans(window, starts, ends, question, n_best, max_answer_length)
    ]
    return sorted(spans, key=lambda span: -span.score)[:n_best]


def null_score(windows: Sequence[tuple[Window, np.ndarray, np.ndarray]]) -> float:
    """Score of "no answer": the least of the windows', as one that has the answer denies it."""
    return min(float(starts[w.null]) + float(ends[w.null]) for w, starts, ends in windows)


def _window_spans(
    window: Window,
    starts: np.ndarray,
    ends: np.ndarray,
    question: Question,
    n_best: int,
    max_answer_length: int,
) -> list[Span]:
    inside = np.array([span is not None and span[0] < span[1] for span in window.offsets])
    first, last = (_largest(np.where(inside, logits, -np.inf), n_best) for logits in (starts, ends))
    spans = []
    for start in first:
        for end in last:
            if not start <= end < start + max_answer_length:
                continue
            characters = window.offsets[start], window.offsets[end]
            assert characters[0] is not None and characters[1] is not None
            spans.append(
                Span(
                    float(starts[start]) + float(ends[end]),
                    question.context[characters[0][0] : characters[1][1]],
                )
            )
    return spans


def _largest(logits: np.ndarray, count: int) -> list[int]:
    """Positions of the largest finite entries, in falling order; ties by position."""
    order = np.argsort(-logits, kind="stable")[:count]
    return [int(position) for position in order if np.isfinite(logits[position])]
