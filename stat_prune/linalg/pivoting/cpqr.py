"""Column-pivoted QR by LAPACK, in the form of a pivoted factor."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.linalg import lapack
from torch import Tensor

from stat_prune.linalg.pivoting.factor import PivotedCholesky
from stat_prune.linalg.streaming.tsqr import triangular_factor


def column_pivoted_qr(
    matrix: Float64[Tensor, "n m"],
    column_weights: Float64[Tensor, " m"] | None = None,
    max_rank: int | None = None,
) -> PivotedCholesky:
    """Factor AᵀA by LAPACK's `geqp3` on A, without forming AᵀA.

    A tall matrix is first reduced to its triangular factor, which has the same pivots and is
    smaller; on the device of `matrix`. The pivoted part runs on the CPU.

    Parameters
    ----------
    matrix : Tensor of shape (n, m), float64
    column_weights : Tensor of shape (m,), float64, optional
        Pivots are those of A diag(w); the factor is that of A.
    max_rank : int, optional
        Largest rank. Default: the numerical rank, where |R_kk| falls to max(n, m) eps |R_11|.

    Returns
    -------
    PivotedCholesky
        Its `gram` is None.

    References
    ----------
    Golub (1965), Numerical methods for solving linear least squares problems, Numer. Math. 7;
    Quintana-Ortí, Sun and Bischof (1998), A BLAS-3 version of the QR factorization with column
    pivoting, SIAM J. Sci. Comput. 19(5).
    """
    n, m = matrix.shape
    work = triangular_factor(matrix) if n >= 2 * m else matrix
    triangle, order = _geqp3(work, column_weights)
    diagonal = triangle.diagonal().abs()
    if column_weights is not None:
        diagonal = diagonal * column_weights[order[: len(diagonal)]]
    threshold = max(n, m) * torch.finfo(torch.float64).eps * float(diagonal[0])
    numerical = int((diagonal > threshold).long().cumprod(0).sum())
    rank = numerical if max_rank is None else min(max_rank, numerical)
    return factor_of(triangle, order, rank)


def factor_of(
    triangle: Float64[Tensor, "r m"], order: Int64[Tensor, " m"], rank: int
) -> PivotedCholesky:
    """The factor of rank `rank` from R, whose columns are in pivot order."""
    factor = torch.empty_like(triangle.T)
    factor[order] = triangle.T
    remainder = factor[:, rank:].square().sum(dim=1)
    return PivotedCholesky(order, factor[:, :rank], rank, remainder)


def _geqp3(
    matrix: Float64[Tensor, "n m"], column_weights: Float64[Tensor, " m"] | None
) -> tuple[Float64[Tensor, "r m"], Int64[Tensor, " m"]]:
    """R (its columns in pivot order, not weighted) and the order; |diag R| weighted falls."""
    host = matrix.cpu().numpy()
    scaled = host if column_weights is None else host * column_weights.cpu().numpy()
    # Always a copy, so that the caller's matrix survives.
    scaled = np.array(scaled, order="F")
    # The default workspace would make LAPACK run its unblocked algorithm.
    lwork = int(lapack.dgeqp3(scaled, lwork=-1)[3][0])
    packed, pivots, tau, _, _ = lapack.dgeqp3(scaled, lwork=lwork, overwrite_a=1)
    order = pivots.astype(np.int64) - 1
    rows = min(host.shape)
    if column_weights is None:
        triangle = np.triu(packed[:rows])
    else:
        # R of A itself, for columns of weight zero too: QᵀA rather than R diag(w)⁻¹.
        reflectors = packed[:, :rows]
        lwork = int(lapack.dormqr("L", "T", reflectors, tau, host, -1)[1][0])
        rotated, _, _ = lapack.dormqr("L", "T", reflectors, tau, host[:, order], lwork)
        triangle = np.triu(rotated[:rows])
    return torch.from_numpy(triangle).to(matrix.device), torch.from_numpy(order).to(matrix.device)
