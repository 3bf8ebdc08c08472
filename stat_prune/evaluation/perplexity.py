"""Perplexity of causal language models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.errors import DataError, ModelError, SettingsError
from stat_prune.evaluation.forward import entry_of
from stat_prune.model.dispatched import input_device
from stat_prune.model.running import evaluating, model_inputs

IGNORED = -100
Mode = Literal["documents", "blocks", "sliding"]
# Float64 logits of a vocabulary of 128,000: one GiB at a time.
TOKENS_AT_ONCE = 1024


@dataclass(frozen=True)
class Piece:
    """Tokens that are read at once; all from `first` on are predicted."""

    ids: Tensor
    first: int


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    context_length: int | None = None,
    mode: Mode = "documents",
    stride: int | None = None,
    limit: int | None = None,
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
    mode : {"documents", "blocks", "sliding"}
        ``"documents"``: every text starts afresh, with the special tokens of the tokenizer.
        ``"blocks"``: the texts are joined by blank lines and cut into blocks of `context_length`,
        the usual recipe for WikiText; an incomplete last block is left out.
        ``"sliding"``: joined likewise, and read through a window of `context_length` that moves on
        by `stride`; every token but the first is predicted once, from at least
        ``context_length - stride`` tokens before it where there are so many.
    stride : int, optional
        For ``"sliding"``, below `context_length`. Default: half of it.
    limit : int, optional
        Only the first so many pieces.
    batch_size : int

    Returns
    -------
    dict
        ``perplexity``; ``nll``, the mean in nats; ``num_tokens`` that were predicted (the first
        token of a document or block has nothing before it and is not); ``context_length``,
        ``mode`` and, for ``"sliding"``, ``stride``.

    Raises
    ------
    DataError
        If there is no token to predict, or the stride is none.
    """
    if context_length is None:
        context_length = min(getattr(model.config, "max_position_embeddings", 2048), 2048)
    if mode not in get_args(Mode):
        raise SettingsError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
    protocol: dict[str, Any] = {"context_length": context_length, "mode": mode}
    if mode == "sliding":
        protocol["stride"] = _checked_stride(stride, context_length)
    pieces = _pieces(tokenizer, texts, **protocol)[:limit]
    if not pieces:
        raise DataError(
            f"There is no token to predict: no piece of {len(texts)} text(s) has "
            f"{context_length if mode == 'blocks' else 2} tokens."
        )
    pieces.sort(key=lambda piece: -len(piece.ids))
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
        **protocol,
    }


def joined_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """The tokens of the texts, joined by blank lines."""
    ids: list[int] = tokenizer("\n\n".join(texts))["input_ids"]
    return ids


def _checked_stride(stride: int | None, context_length: int) -> int:
    if stride is None:
        stride = max(context_length // 2, 1)
    if not 1 <= stride < context_length:
        raise DataError(
            f"stride must be at least 1 and below the context length, {context_length}; got "
            f"{stride}. For pieces that share nothing there is mode='blocks'."
        )
    return stride


def _pieces(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    context_length: int,
    mode: Mode,
    stride: int | None = None,
) -> list[Piece]:
    if mode == "documents":
        documents = tokenizer(list(texts))["input_ids"] if texts else []
    else:
        documents = [joined_ids(tokenizer, texts)]
    if stride is not None:
        return list(_windows(documents[0], context_length, stride))
    shortest = context_length if mode == "blocks" else 2
    parts = [
        ids[start : start + context_length]
        for ids in documents
        for start in range(0, len(ids), context_length)
    ]
    return [Piece(torch.tensor(part), 1) for part in parts if len(part) >= max(shortest, 2)]


def _windows(ids: Sequence[int], context_length: int, stride: int) -> Iterator[Piece]:
    """Each window predicts what no earlier one has."""
    predicted = 1
    for start in range(0, len(ids), stride):
        stop = min(start + context_length, len(ids))
        if predicted < stop:
            yield Piece(torch.tensor(ids[start:stop]), predicted - start)
        predicted = stop


def _token_losses(model: PreTrainedModel, pieces: Sequence[Piece]) -> Tensor:
    """Negative log-likelihood of each predicted token, float64 of shape (n_tokens,)."""
    rows = [piece.ids for piece in pieces]
    batch = {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
    output = model(**model_inputs(model, batch, input_device(model)))
    logits = entry_of(output, "logits", model)
    if logits.shape[:2] != batch["input_ids"].shape:
        raise ModelError(
            f"{type(model).__name__} gives logits of shape {tuple(logits.shape[1:])} a text, not "
            "one row a token. Perplexity is that of causal language models."
        )
    logits = logits[:, :-1].flatten(0, 1)
    targets = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    for row, piece in enumerate(pieces):
        targets[row, : piece.first] = IGNORED
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
