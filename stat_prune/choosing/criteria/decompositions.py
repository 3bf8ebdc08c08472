"""The default criterion: interpolative decomposition of the activations, seen by the consumer."""

from __future__ import annotations

import torch

from stat_prune.choosing.criteria.candidates import Ranking
from stat_prune.linalg import block_pivoting, pivoted_cholesky
from stat_prune.measuring.statistics import BlockStatistics


def interpolative(
    statistics: BlockStatistics, unit_size: int, generator: torch.Generator
) -> Ranking:
    """Pivots of the interpolative decomposition, weighted by the consumer.

    Single channels: column-pivoted QR of ``A diag(||W_:j||)``, computed as the pivoted Cholesky
    factorization of its Gram matrix (STAT, section 3). Groups of channels: greedy elimination on
    the residual seen through the consumer's weight.

    Parameters
    ----------
    statistics : BlockStatistics
    unit_size : int
        Channels that leave together.
    generator : torch.Generator
        Not used; the choice is deterministic.
    """
    if unit_size > 1:
        blocks = block_pivoting(statistics.gram, statistics.weight, unit_size)
        return Ranking(blocks.order.cpu(), blocks.residual_curve, blocks.activation_curve)
    gram = statistics.gram if statistics.expendable else statistics.gram.clone()
    factored = pivoted_cholesky(gram, column_weights=statistics.weight.norm(dim=0), overwrite=True)
    return Ranking(
        factored.order.cpu(),
        _extended(factored.residual_curve(statistics.weight), len(factored.order)),
        _extended(factored.residual_curve(), len(factored.order)),
    )


def _extended(curve: torch.Tensor, size: int) -> torch.Tensor:
    """Beyond the numerical rank nothing is left to gain; at the full size the error is zero."""
    extended = curve.new_zeros(size + 1)
    extended[: len(curve)] = curve
    extended[len(curve) : size] = curve[-1]
    extended[size] = 0.0
    return extended
