"""Interpolative decomposition of a matrix, or of what was streamed of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from stat_prune.linalg.checks import (
    check_choice,
    check_column_weights,
    check_finite,
    check_gram,
    check_group_size,
    check_matrix,
    check_number,
    check_rank,
    check_weight,
)
from stat_prune.linalg.exceptions import NumericalWarning
from stat_prune.linalg.pivoting.block_pivoting import block_pivoting
from stat_prune.linalg.pivoting.cholesky import pivoted_cholesky, randomly_pivoted_cholesky
from stat_prune.linalg.pivoting.cpqr import column_pivoted_qr
from stat_prune.linalg.pivoting.decomposition import InterpolativeDecomposition, build
from stat_prune.linalg.pivoting.factor import PivotedCholesky
from stat_prune.linalg.pivoting.ranks import rank_within, relative_errors
from stat_prune.linalg.pivoting.strong import strong_rrqr
from stat_prune.linalg.solving.least_squares import interpolation_from_gram
from stat_prune.linalg.streaming.moments import Moments
from stat_prune.linalg.streaming.sketches import CountSketch, GaussianSketch, SparseSketch
from stat_prune.linalg.streaming.tsqr import TSQR

Statistics = Moments | TSQR | CountSketch | GaussianSketch | SparseSketch


def interpolative_decomposition(
    a: Tensor | Statistics,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    norm: str = "fro",
    column_weights: Tensor | None = None,
    weight: Tensor | None = None,
    group_size: int = 1,
    pivoting: str = "cpqr",
    bound: float = 2.0,
    centered: bool = False,
    seed: int = 0,
) -> InterpolativeDecomposition:
    """Choose columns J of A and T such that A ≈ A_J T.

    Parameters
    ----------
    a : Tensor of shape (n, m), or Moments, TSQR, CountSketch, GaussianSketch, SparseSketch
        A itself, any floating-point dtype; or what was streamed of its rows.
    rank : int, optional
        Number k of columns to keep, a multiple of `group_size`.
    tolerance : float, optional
        Instead of `rank`: the smallest rank of ‖A - A_J T‖ <= `tolerance` ‖A‖ in this order of
        the columns. Default, if neither is given: the numerical rank.
    norm : {"fro", "spectral"}
        In which norm `tolerance` holds. "spectral" is estimated by power iteration, see
        `spectral_norm`, and fails with a probability below 1e-8.
    column_weights : Tensor of shape (m,), optional
        Columns are chosen from A diag(w), non-negative; T and errors are those of A. Columns of
        weight zero come last.
    weight : Tensor of shape (d, m), optional
        Instead of `column_weights`: W, through which A is read next. Its column norms are the
        column weights; with groups, the residual is seen through W itself.
    group_size : int
        Columns kept or left together, consecutive, such as those of an attention head; divides m.
        Above 1 the choice is `block_pivoting`'s, and `pivoting` must be left alone.
    pivoting : {"cpqr", "cholesky", "strong", "randomized"}
        "cpqr", LAPACK's column-pivoted QR (of `Moments`, the same pivots by Cholesky);
        "cholesky", pivoted Cholesky of the Gram matrix, many times faster and blind to what is
        below about 1e-8 ‖A‖; "strong", Gu and Eisenstat's swaps after CPQR, for |T_ij| <= `bound`
        (of the weighted columns); "randomized", randomly pivoted Cholesky.
    bound : float
        f of "strong", above 1.
    centered : bool
        Of `Moments` only: decompose the deviations from the mean.
    seed : int
        Of "randomized" and of the spectral norm.

    Returns
    -------
    InterpolativeDecomposition

    Raises
    ------
    ValueError
        If an entry is not finite (the first is named), an option is out of range, `rank` exceeds
        min(n, m), or no row was seen.
    TypeError
        If `a` or an option has the wrong type.

    Warns
    -----
    NumericalWarning
        If `rank` exceeds the numerical rank (columns beyond it serve no other column), or
        `tolerance` lies below what the factorisation resolves.

    References
    ----------
    Cheng, Gimbutas, Martinsson and Rokhlin (2005), On the compression of low rank matrices, SIAM
    J. Sci. Comput. 26(4); the pivotings cite their own.

    Examples
    --------
    A column that is the sum of two others is not needed:

    >>> import torch
    >>> from stat_prune.linalg import interpolative_decomposition
    >>> a = torch.tensor([[3.0, 0.0, 3.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    >>> found = interpolative_decomposition(a, tolerance=1e-6)
    >>> found.columns
    tensor([2, 0])
    >>> torch.allclose(a[:, found.columns].double() @ found.interpolation, a.double())
    True
    """
    check_choice(pivoting, "pivoting", ("cpqr", "cholesky", "strong", "randomized"))
    check_choice(norm, "norm", ("fro", "spectral"))
    if rank is not None and tolerance is not None:
        raise ValueError(f"pass `rank` or `tolerance`, not both (got {rank} and {tolerance}).")
    if tolerance is not None:
        check_number(tolerance, "tolerance", strict=True)
    if weight is not None and column_weights is not None:
        raise ValueError("pass `weight` or `column_weights`, not both.")
    data = _open(a, centered)
    m = data.num_channels
    if rank is not None:
        check_rank(rank, data.largest_rank)
    if column_weights is not None:
        column_weights = check_column_weights(column_weights, m, data.tensor)
    if weight is not None:
        weight = check_weight(weight, m, data.tensor.device)
        column_weights = torch.linalg.vector_norm(weight, dim=0)
    if check_group_size(group_size, m) != m:
        if pivoting != "cpqr" or norm != "fro":
            raise ValueError(
                f"groups are chosen by block pivoting and in Frobenius norm; leave `pivoting` and "
                f"`norm` alone (got {pivoting!r}, {norm!r})."
            )
        seen = weight if column_weights is None or weight is not None else column_weights.diag()
        return _by_groups(data.gram(), rank, tolerance, seen, group_size)
    factor = _pivot(data, pivoting, column_weights, seed)
    if tolerance is not None:
        rank = rank_within(factor, tolerance, norm, seed)
    rank = factor.rank if rank is None else rank
    if pivoting == "strong":
        factor = strong_rrqr(factor, rank, bound=bound, column_weights=column_weights)
        # Swaps enlarge the volume, which as a rule but not always lowers the error.
        while tolerance is not None:
            needed = rank_within(factor, tolerance, norm, seed)
            if needed <= rank:
                break
            rank = needed
            factor = strong_rrqr(factor, rank, bound=bound, column_weights=column_weights)
    if rank > factor.rank:
        warnings.warn(
            f"{rank} columns were asked for, but their numerical rank is {factor.rank}: those "
            "beyond it serve no other column. Keep fewer columns or pass a `tolerance`.",
            NumericalWarning,
            stacklevel=2,
        )
    curve = relative_errors(factor.residual_curve())
    return build(factor.order, rank, curve, 1, factor.interpolation)


@dataclass(frozen=True)
class _Data:
    """A matrix whose AᵀA is that of the data (the data, R, or a sketch), or that Gram matrix."""

    tensor: Tensor
    is_gram: bool
    largest_rank: int

    @property
    def num_channels(self) -> int:
        return self.tensor.shape[1]

    def gram(self) -> Float64[Tensor, "m m"]:
        if self.is_gram:
            return self.tensor
        return Moments(self.num_channels).update(self.tensor).gram


def _open(a: Tensor | Statistics, centered: bool) -> _Data:
    if isinstance(a, Tensor):
        check_finite(check_matrix(a, "a"), "a")
        if not a.numel():
            raise ValueError(f"`a` must have at least one row and column, got {tuple(a.shape)}.")
        if centered:
            raise ValueError("`centered` needs Moments; subtract the mean from a matrix instead.")
        return _Data(a.detach(), False, min(a.shape))
    if not isinstance(a, Statistics):
        raise TypeError(f"`a` must be a tensor or statistics of one, got {type(a).__name__}.")
    if not a.count:
        raise ValueError(f"this {type(a).__name__} has seen no rows; call update() first.")
    if isinstance(a, Moments):
        tensor = check_gram(a.scatter if centered else a.gram)
        return _Data(tensor, True, min(a.count, a.num_channels))
    if centered:
        raise ValueError(f"`centered` needs Moments, got a {type(a).__name__}.")
    matrix = a.r if isinstance(a, TSQR) else a.matrix
    return _Data(matrix, False, min(a.count, *matrix.shape))


def _pivot(
    data: _Data, pivoting: str, column_weights: Float64[Tensor, " m"] | None, seed: int
) -> PivotedCholesky:
    if pivoting == "randomized":
        return randomly_pivoted_cholesky(data.gram(), column_weights=column_weights, seed=seed)
    if data.is_gram or pivoting == "cholesky":
        return pivoted_cholesky(data.gram(), column_weights=column_weights)
    return column_pivoted_qr(data.tensor.to(torch.float64), column_weights)


def _by_groups(
    gram: Float64[Tensor, "m m"],
    rank: int | None,
    tolerance: float | None,
    weight: Float64[Tensor, "d m"] | None,
    group_size: int,
) -> InterpolativeDecomposition:
    blocks = block_pivoting(gram, weight, group_size)
    curve = relative_errors(blocks.activation_curve)
    if rank is None:
        enough = (curve <= (tolerance or 0.0)).nonzero()
        rank = group_size * int(enough[0] if len(enough) else len(blocks.order))
    inside = torch.arange(group_size, device=gram.device)
    order = (blocks.order[:, None] * group_size + inside).flatten()
    return build(order, rank, curve, group_size, lambda k: interpolation_from_gram(gram, order[:k]))
