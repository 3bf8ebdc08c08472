"""What a model's head decides about a sequence, and the loss of that decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stat_prune.data.batching import token_mask
from stat_prune.errors import DataError, ModelError
from stat_prune.model.running import Batch, evaluating, model_inputs
from stat_prune.pipeline.run import Run


def check_decides(run: Run) -> None:
    """Refuse models that `decisions` does, on the shortest sequences, before any work.

    Raises
    ------
    ModelError
    """
    batch = run.calibration.batches[-1]
    with evaluating(run.model):
        decisions(run.model(**model_inputs(run.model, batch, run.device)), batch)


def decisions(output: Any, batch: Batch) -> list[Tensor]:
    """The logits of every decision about a sequence, at least in float32.

    Returns
    -------
    list of Tensor of shape (batch, classes)
        One of a sequence classification model, where a regression has one class; two of a question
        answering model (start and end; a class is a token, and padding has no probability).

    Raises
    ------
    ModelError
        For other heads, and without one.
    """
    if "start_logits" in output:
        hidden = ~token_mask(batch).to(output["start_logits"].device)
        names = ("start_logits", "end_logits")
        return [_at_least_float32(output[name]).masked_fill(hidden, -1e9) for name in names]
    if "logits" not in output or output["logits"].ndim != 2:
        raise ModelError(
            "Methods that need a task loss ('fisher', 'kprune') take models for sequence "
            "classification, regression or question answering. Load the model with its task "
            "head, or use method='stat'."
        )
    return [_at_least_float32(output["logits"])]


def task_losses(output: Any, batch: Batch, *, labelled: bool) -> Tensor:
    """Cross-entropy or squared error of each example.

    Without labels the model's own predictions take their place: the most probable class. For a
    regression, where that would give no gradient at all, the loss is the prediction itself; its
    squared gradient is the expectation of that of ``(prediction - y)**2 / 2`` over a normal ``y``
    of unit variance about the prediction.

    Parameters
    ----------
    output : ModelOutput
    batch : mapping of str to Tensor
    labelled : bool
        Whether to read ``batch["labels"]``; answers to questions have none.

    Returns
    -------
    Tensor of shape (batch,)

    Raises
    ------
    ModelError
        If the model has no head for whole sequences.
    DataError
        If a label is no class of the model.
    """
    logits = decisions(output, batch)
    labelled = labelled and len(logits) == 1
    if logits[0].shape[1] == 1:
        predicted = logits[0].squeeze(1)
        return (predicted - batch["labels"].to(predicted)).square() if labelled else predicted
    if labelled:
        chosen = [_classes(batch["labels"], logits[0].shape[1]).to(logits[0].device)]
    else:
        chosen = [one.argmax(1) for one in logits]
    return _summed(
        functional.cross_entropy(one, classes, reduction="none")
        for one, classes in zip(logits, chosen, strict=True)
    )


def divergences(
    dense: Sequence[Tensor], pruned: Sequence[Tensor], *, temperature: float, scale: float
) -> Tensor:
    """What each example's decisions have lost.

    Parameters
    ----------
    dense, pruned : sequence of Tensor of shape (batch, classes)
        Of `decisions`.
    temperature : float
        Divides logits; the divergence ``KL(dense || pruned)`` is multiplied by its square (Hinton
        et al. 2015).
    scale : float
        Predictions of a regression are divided by it, and their squared difference is taken.

    Returns
    -------
    Tensor of shape (batch,)
    """
    if dense[0].shape[1] == 1:
        return ((pruned[0] - dense[0]) / scale).square().squeeze(1)
    return _summed(
        functional.kl_div(
            (after / temperature).log_softmax(1),
            (before / temperature).log_softmax(1),
            log_target=True,
            reduction="none",
        ).sum(1)
        * (temperature**2 / len(dense))
        for before, after in zip(dense, pruned, strict=True)
    )


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _summed(losses: Any) -> Tensor:
    return torch.stack(list(losses)).sum(0)


def _classes(labels: Tensor, num_classes: int) -> Tensor:
    wrong = (labels != labels.round()) | (labels < 0) | (labels >= num_classes)
    if bool(wrong.any()):
        raise DataError(
            f"The label {labels[wrong][0].item()!r} is none of the model's classes 0 to "
            f"{num_classes - 1}. Pass the labels that the model was trained with, or leave their "
            "column away: then the model's own predictions take their place."
        )
    return labels.long()
