"""Perplexity of causal language models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.collectors import evaluating, model_inputs
from stat_prune.errors import DataError

IGNORED = -100
# Float64 logits of a vocabulary of 128,000: one GiB at a time.
TOKENS_AT_ONCE = 1024


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    context_length: int | None = None,
    mode: Literal["documents", "blocks"] = "documents",
    batch_size: int = 8,
) -> dict[str, Any]:
    """Exponential of the mean negative log-likelihood of a token, over all tokens of all texts.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    tokenizer : PreTrainedTokenizerBase
    texts : sequence of str
    context_length : int, optional
        Longest piece that the model reads at once; longer texts are cut into such pieces. Default:
        what the model's config admits, at most 2,048. Figures compare only at equal lengths.
    mode : {"documents", "blocks"}
        ``"documents"``: every text starts afresh, with the special tokens of the tokenizer.
        ``"blocks"``: the texts are joined by blank lines and cut into blocks of `context_length`,
        the usual recipe for WikiText; an incomplete last block is left out.
    batch_size : int

    Returns
    -------
    dict
        ``perplexity``; ``nll``, the mean in nats; ``num_tokens`` that were predicted (the first
        token of a piece has nothing before it and is not); ``context_length`` and ``mode``.

    Raises
    ------
    DataError
        If there is no token to predict.
    """
    if context_length is None:
        context_length = min(getattr(model.config, "max_position_embeddings", 2048), 2048)
    if mode == "documents":
        documents = tokenizer(list(texts))["input_ids"] if texts else []
    elif mode == "blocks":
        documents = [tokenizer("\n\n".join(texts))["input_ids"]]
    else:
        raise ValueError(f"mode must be 'documents' or 'blocks', got {mode!r}.")
    shortest = context_length if mode == "blocks" else 2
    pieces = [
        piece
        for ids in documents
        for piece in _pieces(ids, context_length)
        if len(piece) >= shortest
    ]
    if not pieces:
        raise DataError(
            f"There is no token to predict: no piece of {len(texts)} text(s) has {shortest} tokens."
        )
    pieces.sort(key=len, reverse=True)
    total, num_tokens = 0.0, 0
    with evaluating(model):
        for start in range(0, len(pieces), batch_size):
            losses = _token_losses(model, pieces[start : start + batch_size])
            total += float(losses.sum())
            num_tokens += len(losses)
    return {
        "perplexity": math.exp(total / num_tokens),
        "nll": total / num_tokens,
        "num_tokens": num_tokens,
        "context_length": context_length,
        "mode": mode,
    }


def _pieces(ids: Sequence[int], length: int) -> Iterator[Tensor]:
    for start in range(0, len(ids), length):
        yield torch.tensor(ids[start : start + length])


def _token_losses(model: PreTrainedModel, pieces: Sequence[Tensor]) -> Tensor:
    """Negative log-likelihood of each predicted token, float64 of shape (n_tokens,)."""
    batch = {
        "input_ids": pad_sequence(list(pieces), batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(p) for p in pieces], batch_first=True),
    }
    logits = model(**model_inputs(model, batch, model.device)).logits[:, :-1].flatten(0, 1)
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    targets = targets[:, 1:].flatten().to(logits.device)
    kept = targets != IGNORED
    return torch.cat(
        [
            cross_entropy(some.double(), expected, reduction="none")
            for some, expected in zip(
                logits[kept].split(TOKENS_AT_ONCE), targets[kept].split(TOKENS_AT_ONCE), strict=True
            )
        ]
    )
