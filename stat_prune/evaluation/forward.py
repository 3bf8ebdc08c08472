"""Run a model over texts in batches of similar length; results come in the order of the texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.calibration import DEFAULT_MAX_TEXT_LENGTH
from stat_prune.errors import DataError, ModelError
from stat_prune.model.dispatched import input_device
from stat_prune.model.running import evaluating, model_inputs

Text = str | tuple[str, str]


def forward_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    read: Callable[[Any, Mapping[str, Tensor]], Tensor],
    batch_size: int = 32,
    max_seq_length: int | None = None,
) -> Tensor:
    """Collect one row a text from the model's outputs.

    Parameters
    ----------
    model : PreTrainedModel
        Runs in evaluation mode, where it is, and comes back in the mode it had.
    tokenizer : PreTrainedTokenizerBase
    texts : sequence of str or of pairs of str
    read : callable
        Takes the output and the batch (with ``attention_mask``), gives a tensor (batch, ...).
    batch_size : int
    max_seq_length : int, optional
        Default: what the tokenizer admits, at most 512.

    Returns
    -------
    Tensor of shape (n_texts, ...), on the CPU
    """
    if not texts:
        raise DataError("There is nothing to evaluate: the list of texts is empty.")
    limit = max_seq_length or min(tokenizer.model_max_length, DEFAULT_MAX_TEXT_LENGTH)
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    rows = [tokenizer(*pair, truncation=True, max_length=limit) for pair in pairs]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
    results: list[Tensor] = [torch.empty(0)] * len(rows)
    device = input_device(model)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer.pad([rows[i] for i in chosen], padding=True, return_tensors="pt")
            batch = batch.to(device)
            output = read(model(**model_inputs(model, batch, device)), batch).cpu()
            for index, row in zip(chosen, output, strict=True):
                results[index] = row
    return torch.stack(results)


def entry_of(output: Any, name: str, model: PreTrainedModel) -> Tensor:
    """What a model's output holds under a name.

    Raises
    ------
    ModelError
        If it holds no such thing: the model has another head, or none.
    """
    found = getattr(output, name, None)
    if not isinstance(found, Tensor):
        raise ModelError(
            f"The output of {type(model).__name__} has no {name}, from which the task is scored. "
            "Load the model with the head of the task."
        )
    return found
