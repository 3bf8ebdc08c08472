"""The statistics of one sequence's attention, and their sums over sequences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Sum over queries by statistic, of shape (heads,), and the number of queries in it.
Partial = Mapping[str, tuple[Tensor, int]]


class Sums:
    """Sums over queries, which become means."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, partial: Partial) -> None:
        """Count one sequence."""
        for name, (total, count) in partial.items():
            self._totals[name] = self._totals.get(name, 0) + total
            self._counts[name] = self._counts.get(name, 0) + count

    def means(self) -> dict[str, Tensor]:
        """By statistic, float64 on the CPU; NaN where no query counted."""
        return {
            name: (total / (self._counts[name] or torch.nan)).cpu()
            for name, total in self._totals.items()
        }


def of_weights(weights: Tensor, visible: Tensor, positions: Tensor, threshold: float) -> Partial:
    """What the weights say by themselves.

    Parameters
    ----------
    weights : Tensor of shape (heads, n, n), float64
        Row i: the attention of query i; zero for keys that it does not see.
    visible : Tensor of shape (n, n), bool
    positions : Tensor of shape (n,), int64
        Of the tokens in their sequence.
    threshold : float
        Of the sparsity.
    """
    seen = visible.sum(1)
    entropy = -torch.xlogy(weights, weights).sum(-1)
    several = seen > 1
    distances = (positions[:, None] - positions).abs().double()
    small = ((weights < threshold) & visible).sum(-1) / seen
    per_query = {
        "entropy": entropy,
        "sparsity": small,
        "gini": _gini(weights, seen),
        "distance": (weights * distances).sum(-1),
        "to_current": weights.diagonal(dim1=-2, dim2=-1),
        "to_neighbors": (weights * (distances == 1)).sum(-1),
    }
    normalized = entropy[:, several] / seen[several].log()
    return {name: (values.sum(1), len(seen)) for name, values in per_query.items()} | {
        "normalized_entropy": (normalized.sum(1), int(several.sum()))
    }


def of_classes(weights: Tensor, visible: Tensor, *, special: Tensor, content: Tensor) -> Partial:
    """What the weights say of kinds of tokens; `special` and `content` are bool of shape (n,)."""
    plain = ~special
    confidence = weights[:, plain][:, :, plain].amax(-1) if plain.any() else weights[:, :0, 0]
    return {
        "confidence": (confidence.sum(1), int(plain.sum())),
        "to_special": (weights[:, :, special].sum((1, 2)), len(visible)),
        "to_content": (weights[:, :, content].sum((1, 2)), len(visible)),
    }


def _gini(weights: Tensor, seen: Tensor) -> Tensor:
    """Gini coefficient of each query's weights among the keys that it sees; (heads, n).

    ``sum_k (2 k - m - 1) a_(k) / (m sum a)`` with ascending weights a_(1..m). Keys that are not
    seen have weight zero: they come first when sorted, and add nothing.
    """
    ascending = weights.sort(-1).values
    hidden = len(seen) - seen
    rank = torch.arange(1, len(seen) + 1, device=weights.device) - hidden[:, None]
    signed = (2 * rank - seen[:, None] - 1) * ascending
    return signed.sum(-1) / (seen * weights.sum(-1))
