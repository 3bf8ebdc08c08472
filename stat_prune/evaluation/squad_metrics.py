"""Exact match and F1 as SQuAD defines them.

References
----------
.. [1] Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016,
   section 6.1: articles and punctuation are ignored, and the best of the annotators' answers
   counts.
.. [2] Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD", ACL
   2018: where there is no answer, the empty string is the right one.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stat_prune.errors import DataError
from stat_prune.evaluation.squad_data import Question

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def squad_scores(questions: Sequence[Question], predictions: Mapping[str, str]) -> dict[str, float]:
    """Mean exact match and F1 over questions, in per cent.

    Parameters
    ----------
    questions : sequence of Question
    predictions : mapping of str to str
        By the question's id; the empty string says that there is no answer.

    Returns
    -------
    dict of str to float
        ``f1`` and ``exact_match``. Where some questions have no answer, the share of them that was
        recognised (``unanswerable_exact_match``), and the two scores over the other questions
        (``answerable_f1``, ``answerable_exact_match``).

    Raises
    ------
    DataError
        If there is no question, or one has no prediction.
    """
    missing = [question.id for question in questions if question.id not in predictions]
    if missing or not questions:
        raise DataError(
            f"{len(missing)} of {len(questions)} questions have no prediction"
            + (f", the first of them {missing[0]!r}" if missing else "")
            + ". Every question that is scored needs one; the empty string means no answer."
        )
    found = [
        _best(predictions[question.id], _accepted(question), bool(question.answers))
        for question in questions
    ]
    scores = _means(found)
    answerable = [best for best in found if best.answerable]
    unanswerable = [best for best in found if not best.answerable]
    if answerable and unanswerable:
        scores |= {f"answerable_{name}": value for name, value in _means(answerable).items()}
    if unanswerable:
        scores["unanswerable_exact_match"] = _means(unanswerable)["exact_match"]
    return scores


@dataclass(frozen=True)
class Best:
    """The scores of one prediction against the answer that suits it best, between 0 and 1."""

    f1: float
    exact: float
    answerable: bool


def _best(prediction: str, accepted: Sequence[str], answerable: bool) -> Best:
    return Best(
        max(token_f1(prediction, answer) for answer in accepted),
        max(float(exact_match(prediction, answer)) for answer in accepted),
        answerable,
    )


def _means(found: Sequence[Best]) -> dict[str, float]:
    """In per cent."""
    return {
        "f1": 100 * sum(best.f1 for best in found) / len(found),
        "exact_match": 100 * sum(best.exact for best in found) / len(found),
    }


def exact_match(prediction: str, answer: str) -> bool:
    """Whether they are the same up to case, punctuation, articles and blanks."""
    return normalized(prediction) == normalized(answer)


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words; an empty side matches an empty one."""
    predicted, expected = normalized(prediction).split(), normalized(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def normalized(text: str) -> str:
    """Lower case without punctuation, articles and superfluous blanks, in this order."""
    bare = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", bare).split())


def _accepted(question: Question) -> Sequence[str]:
    """The annotators' answers, but for those of which nothing is left; then the empty string."""
    return [answer for answer in question.answers if normalized(answer)] or [""]
