"""The least-squares correction: what the kept channels cannot say is folded into the consumer."""

from __future__ import annotations

import torch
from torch import Tensor

from stat_prune.linalg import interpolation_from_gram
from stat_prune.linalg.solving.in_place import principal_part
from stat_prune.linalg.solving.least_squares import solve_normal
from stat_prune.measuring.statistics import BlockStatistics, complement, quadratic
from stat_prune.model.blocks import Block
from stat_prune.model.folded_consumer import FoldedConsumer

#: Rows or columns that are worked on at once.
_PANEL = 512


def fold(
    statistics: BlockStatistics,
    units: Tensor,
    *,
    corrected: bool = True,
    output_error: float | None = None,
) -> FoldedConsumer:
    """The consumer's weight and bias once only `units` are left.

    With ``A ~ A_J T`` the consumer ``W`` becomes ``W T^T`` (STAT, section 3). As ``T`` is the
    identity on the kept columns, ``W T^T = W_J + W_D T_D^T``, and ``W_D T_D^T`` is solved for
    directly: d right-hand sides instead of m - k. Where the mean is absorbed, the decomposition
    is that of the centred activations and ``(W - W' ) mean`` joins the bias.

    Parameters
    ----------
    statistics : BlockStatistics
        An expendable Gram matrix gives its memory to the system that is solved. The weight may be
        in the model's dtype.
    units : Tensor of shape (u,), int64
        Ascending.
    corrected : bool
        If False, the other columns are merely removed.
    output_error : float, optional
        Of the result, where a decomposition has told it already; else it is computed, for about as
        much as the weight.
    """
    block, weight, gram = statistics.block, statistics.weight, statistics.gram
    kept = block.channels(units.to(gram.device))
    dropped = complement(kept, block.num_channels)
    bias = None
    lost = 0.0
    if output_error is None:
        # What removal alone loses, squared: ||A_D W_D^T||^2; of the mean, nothing yet.
        lost = quadratic(gram[dropped[:, None], dropped], weight[:, dropped].double())
    if corrected and len(dropped):
        known = output_error is not None
        cross = _cross_products(gram, weight[:, dropped].double(), kept, dropped)
        normal = principal_part(gram, kept, overwrite=statistics.expendable)
        correction = solve_normal(normal, cross.T, 0.0, overwrite=known)
        if not known:
            # Least squares explains <cross, correction> of it.
            lost -= float((cross.T * correction).sum())
        folded = correction.T
        for rows, dense in zip(folded.split(_PANEL), weight.split(_PANEL), strict=True):
            rows += dense[:, kept]
        if statistics.mean is not None:
            bias = weight.double() @ statistics.mean - folded @ statistics.mean[kept]
    else:
        folded = weight[:, kept].double()
        if statistics.mean is not None:
            mean_lost = weight[:, dropped].double() @ statistics.mean[dropped]
            lost += statistics.num_tokens * float(mean_lost.square().sum())
    if output_error is None:
        output_error = (max(lost, 0.0) / max(statistics.output_energy, 1e-300)) ** 0.5
    return FoldedConsumer(block, units, folded, bias, output_error)


def folding_bytes(block: Block, kept: float, *, expendable: bool = False) -> int:
    """What `fold` takes beside the Gram matrix: cross products, and dropped weights or the system.

    The system has the memory of an expendable Gram matrix.
    """
    m, d = block.num_channels, block.output_size
    k = round(kept * m)
    return 8 * (k * d + max((m - k) * d, 0 if expendable else k * k))


def _cross_products(gram: Tensor, weight: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """``W_D A_D^T A_J`` of shape (d, k), in the memory of the result and panels of the rest."""
    cross = gram.new_empty(len(weight), len(kept))
    for index, columns in zip(kept.split(_PANEL), cross.split(_PANEL, dim=1), strict=True):
        torch.mm(weight, gram[index[:, None], dropped].T, out=columns)
    return cross


def activation_error(statistics: BlockStatistics, units: Tensor) -> float:
    """``||A - A_J T||_F / ||A||_F`` of the consumer's input with the least-squares ``T``."""
    block, gram = statistics.block, statistics.gram
    kept = block.channels(units.to(gram.device))
    interpolation = interpolation_from_gram(gram, kept)
    residual = float(gram.trace()) - float((interpolation * gram[kept]).sum())
    error: float = (max(residual, 0.0) / max(statistics.activation_energy, 1e-300)) ** 0.5
    return error
