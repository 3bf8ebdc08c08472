"""Sentence encoders: their embeddings, STS correlation, agreement with a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.evaluation.forward import Text, forward_texts
from stat_prune.model.whole_encoders import encoder_kind


def embed(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    sentences: Sequence[str],
    *,
    batch_size: int = 64,
    max_seq_length: int | None = None,
) -> Tensor:
    """Mean of the last hidden states over a sentence's tokens (padding left out).

    Parameters
    ----------
    model : PreTrainedModel or SentenceTransformer
        The latter makes embeddings by its own modules, whatever these are.
    tokenizer : PreTrainedTokenizerBase or None
        None of a SentenceTransformer, which has its own.
    sentences : sequence of str
    batch_size : int
    max_seq_length : int, optional
        Of a PreTrainedModel.

    Returns
    -------
    Tensor of shape (n_sentences, hidden), float32, on the CPU
        Not normalised, but where a SentenceTransformer does so.
    """
    if encoder_kind(model) is not None:
        whole = cast(Any, model)
        found = whole.encode(list(sentences), batch_size=batch_size, convert_to_tensor=True)
        return cast(Tensor, found).float().cpu()
    return forward_texts(
        cast(PreTrainedModel, model.base_model),
        cast(PreTrainedTokenizerBase, tokenizer),
        sentences,
        read=_mean_pool,
        batch_size=batch_size,
        max_seq_length=max_seq_length,
    )


def sts_spearman(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    pairs: Sequence[Text],
    scores: np.ndarray,
    *,
    batch_size: int = 64,
) -> float:
    """Spearman's rank correlation of embedding cosines with human judgements of similarity.

    Parameters
    ----------
    model, tokenizer
        As for `embed`.
    pairs : sequence of pairs of str
    scores : array of shape (n_pairs,)
    batch_size : int
    """
    from scipy.stats import spearmanr  # tens of megabytes that pruning does not need

    first, second = (
        embed(model, tokenizer, list(side), batch_size=batch_size)
        for side in zip(*pairs, strict=True)
    )
    return float(spearmanr(cosine_similarity(first, second), scores).statistic)


def cosine_to_reference(embeddings: Tensor, reference: Tensor) -> float:
    """Mean cosine between the rows of two arrays of shape (n, hidden)."""
    return float(cosine_similarity(embeddings, reference).mean())


def neighbor_recall(embeddings: Tensor, reference: Tensor, k: int = 10) -> float:
    """Share of each row's `k` nearest rows in `reference` that are its `k` nearest here too.

    Parameters
    ----------
    embeddings, reference : Tensor of shape (n, hidden)
        Of the same n texts; neighbours are by cosine, a row is no neighbour of itself.
    k : int
        Less than n.

    Returns
    -------
    float
        Recall@k in [0, 1]; k / (n - 1) is chance.
    """
    if not 1 <= k < len(reference):
        raise ValueError(
            f"k must be at least 1 and below the number of rows, {len(reference)}; got {k}."
        )
    ours, theirs = (_nearest(rows, k) for rows in (embeddings, reference))
    shared = (ours.unsqueeze(2) == theirs.unsqueeze(1)).any(dim=2)
    return float(shared.float().mean())


def _nearest(embeddings: Tensor, k: int) -> Tensor:
    unit = normalize(embeddings, dim=1)
    return (unit @ unit.T).fill_diagonal_(-torch.inf).topk(k, dim=1).indices


def _mean_pool(output: Any, batch: Mapping[str, Tensor]) -> Tensor:
    mask = batch["attention_mask"].unsqueeze(2).float()
    states: Tensor = output.last_hidden_state.float()
    return (states * mask).sum(dim=1) / mask.sum(dim=1)
