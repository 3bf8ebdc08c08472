"""SQuAD: answers of a question answering model, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.sampling import evenly_spaced
from stat_prune.errors import DataError
from stat_prune.evaluation.squad_data import Question, read_squad
from stat_prune.evaluation.squad_decoding import best_spans, null_score
from stat_prune.evaluation.squad_metrics import squad_scores
from stat_prune.evaluation.squad_windows import MAX_SEQ_LENGTH, STRIDE, Window, windows
from stat_prune.machine.progress import progress_bar
from stat_prune.model.dispatched import input_device
from stat_prune.model.running import evaluating, model_inputs

#: Tokens a sequence at which MACs are counted (Kwon et al. 2022, see `stat_prune.data.glue_tasks`).
AVERAGE_LENGTH = 170


def evaluate_squad(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Sequence[Question] | str | Path | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    max_seq_length: int = MAX_SEQ_LENGTH,
    stride: int = STRIDE,
    null_threshold: float = 0.0,
    progress: bool = False,
) -> dict[str, float]:
    """Score a question answering model on SQuAD's development set.

    Parameters
    ----------
    model : PreTrainedModel
        With logits for starts and ends of answers.
    tokenizer : PreTrainedTokenizerBase
        A fast one.
    data : sequence of Question, or path, optional
        What to score on, or a file for `read_squad`. Default: version 1.1 from the Hub.
    limit : int, optional
        Only so many questions, evenly spaced over the articles.
    batch_size : int
    max_seq_length, stride : int
        Of the windows that long contexts are read in, in tokens.
    null_threshold : float
        Where some questions have no answer, the empty one is given if its score exceeds that of the
        best span by more than this.
    progress : bool

    Returns
    -------
    dict of str to float
        As of `squad_scores`, in per cent, and ``num_examples``.

    Raises
    ------
    DataError
        If the data cannot be read, or the model gives no starts and ends.
    """
    questions = read_squad(data) if isinstance(data, str | Path | None) else data
    questions = [questions[index] for index in evenly_spaced(len(questions), limit)]
    answers = answer_questions(
        model,
        tokenizer,
        questions,
        batch_size=batch_size,
        max_seq_length=max_seq_length,
        stride=stride,
        # The version says whether "no answer" is one of the answers.
        null_threshold=None if all(q.answers for q in questions) else null_threshold,
        progress=progress,
    )
    return {**squad_scores(questions, answers), "num_examples": len(questions)}


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_size: int = 32,
    max_seq_length: int = MAX_SEQ_LENGTH,
    stride: int = STRIDE,
    n_best: int = 20,
    max_answer_length: int = 30,
    null_threshold: float | None = None,
    progress: bool = False,
) -> dict[str, str]:
    """The best span of each question's context, or the empty string.

    Parameters
    ----------
    model, tokenizer, batch_size, max_seq_length, stride, progress
        As for `evaluate_squad`.
    questions : sequence of Question
    n_best, max_answer_length : int
        As for `best_spans`.
    null_threshold : float, optional
        As for `evaluate_squad`; None: there always is an answer.

    Returns
    -------
    dict of str to str
        By the question's id.
    """
    rows = windows(tokenizer, questions, max_seq_length=max_seq_length, stride=stride)
    logits = _logits(model, tokenizer, rows, batch_size, progress)
    by_question: dict[int, list[tuple[Window, np.ndarray, np.ndarray]]] = {}
    for row, (starts, ends) in zip(rows, logits, strict=True):
        by_question.setdefault(row.question, []).append((row, starts, ends))
    answers = {}
    for index, question in enumerate(questions):
        found = by_question[index]
        spans = best_spans(found, question, n_best=n_best, max_answer_length=max_answer_length)
        silent = not spans or (
            null_threshold is not None and null_score(found) - spans[0].score > null_threshold
        )
        answers[question.id] = "" if silent else spans[0].text
    return answers


def _logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Window],
    batch_size: int,
    progress: bool,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits of starts and of ends, float32 of each window's length."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].offsets))
    results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    batches = range(0, len(order), batch_size)
    device = input_device(model)
    with evaluating(model):
        for begin in progress_bar(batches, shown=progress, desc="questions", unit="batch"):
            chosen = order[begin : begin + batch_size]
            batch = tokenizer.pad(
                [rows[index].inputs for index in chosen], padding_side="right", return_tensors="pt"
            )
            output = model(**model_inputs(model, batch, device))
            if "start_logits" not in output:
                raise DataError(
                    f"SQuAD needs a question answering model, which says where answers start and "
                    f"end, but this {type(model).__name__} does not. Load it as "
                    "AutoModelForQuestionAnswering."
                )
            pair = torch.stack([output.start_logits, output.end_logits], dim=1).float().cpu()
            for index, (starts, ends) in zip(chosen, pair.numpy(), strict=True):
                length = len(rows[index].offsets)
                results[index] = starts[:length], ends[:length]
    return [results[index] for index in range(len(rows))]
