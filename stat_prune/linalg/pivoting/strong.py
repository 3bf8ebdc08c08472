"""Strong rank-revealing QR: an interpolation whose entries are bounded."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from stat_prune.linalg.checks import check_number
from stat_prune.linalg.exceptions import NumericalWarning
from stat_prune.linalg.pivoting.cpqr import column_pivoted_qr, factor_of
from stat_prune.linalg.pivoting.factor import PivotedCholesky

_PASSES = 10


def strong_rrqr(
    start: PivotedCholesky,
    rank: int,
    *,
    bound: float = 2.0,
    column_weights: Float64[Tensor, " m"] | None = None,
) -> PivotedCholesky:
    """Swap columns until no swap enlarges the volume of the kept ones by more than `bound`.

    For A diag(w) with k columns kept, then |T_ij| <= f, and the singular values of the kept
    columns are at least those of A divided by sqrt(1 + f² k (m - k)), those of the residual at
    most σ_{k+j}(A) times that ([1]_, theorem 3.2).

    Parameters
    ----------
    start : PivotedCholesky
        A pivoted factor of AᵀA to begin with, usually that of `column_pivoted_qr`.
    rank : int
        k. If the numerical rank is smaller, swaps are made at that rank.
    bound : float
        f, above 1. Each swap multiplies the volume by more than f, so that they end.
    column_weights : Tensor of shape (m,), float64, optional
        w, positive. The bound on T holds for weighted columns.

    Returns
    -------
    PivotedCholesky
        Of numerical rank at least k. Truncating it below k is allowed, but the bounds hold at k.

    Raises
    ------
    TypeError, ValueError
        If `bound` is not a number above 1.

    References
    ----------
    .. [1] Gu and Eisenstat (1996), Efficient algorithms for computing a strong rank-revealing QR
       factorization, SIAM J. Sci. Comput. 17(4), algorithm 4 and theorem 3.2.
    """
    check_number(bound, "bound", minimum=1.0, strict=True)
    kept = min(rank, start.rank)
    order = start.order
    triangle = start.factor.T
    scaled = triangle if column_weights is None else triangle * column_weights
    if kept in (0, len(order)):
        return start
    # Swaps are decided on updated matrices; only what a fresh one confirms is accepted.
    for _ in range(_PASSES):
        order, swaps = _swap(_exchange_matrix(scaled, order, kept), order.clone(), kept, bound)
        if not swaps:
            break
    else:
        warnings.warn(
            f"Strong rank-revealing QR at rank {kept} still found columns to swap after {_PASSES} "
            f"passes: rounding hides the bound of {bound:g}. Ask for a smaller rank.",
            NumericalWarning,
            stacklevel=3,
        )
    return _refactor(triangle, scaled, order, kept)


def _exchange_matrix(
    columns: Float64[Tensor, "r m"], order: Int64[Tensor, " m"], kept: int
) -> Float64[Tensor, "m m"]:
    """[[H, -T], [Tᵀ, S]] with H = (A_JᵀA_J)⁻¹ and S the Schur complement, in the order given."""
    q, triangle = torch.linalg.qr(columns[:, order[:kept]])
    rest = columns[:, order[kept:]]
    coefficients = q.T @ rest
    residual = rest - q @ coefficients
    residual -= q @ (q.T @ residual)
    inverse = torch.linalg.solve_triangular(
        triangle, torch.eye(kept, dtype=columns.dtype, device=columns.device), upper=True
    )
    interpolation = torch.linalg.solve_triangular(triangle, coefficients, upper=True)
    top = torch.cat([inverse @ inverse.T, -interpolation], dim=1)
    bottom = torch.cat([interpolation.T, residual.T @ residual], dim=1)
    return torch.cat([top, bottom])


def _swap(
    exchange: Float64[Tensor, "m m"], order: Int64[Tensor, " m"], kept: int, bound: float
) -> tuple[Int64[Tensor, " m"], int]:
    """Swap while the volume grows by more than `bound`: the new order and the number of swaps.

    Keeping j instead of i multiplies the volume by ρ, ρ² = T_ij² + H_ii S_jj (Gu and Eisenstat,
    lemma 3.1), and is a principal pivot on rows and columns {i, j} of the exchange matrix, whose
    determinant is ρ² > f²: a pivot that is safe to divide by.
    """
    swaps = 0
    diagonal = exchange.diagonal()
    while True:
        growth = exchange[:kept, kept:].square()
        growth += diagonal[:kept, None] * diagonal[None, kept:]
        best = int(growth.argmax())
        i, j = divmod(best, growth.shape[1])
        if float(growth[i, j]) <= bound**2:
            return order, swaps
        pair = torch.tensor([i, kept + j], device=exchange.device)
        _principal_pivot(exchange, pair)
        # i is now out and j in: they trade places.
        exchange[pair] = exchange[pair.flip(0)]
        exchange[:, pair] = exchange[:, pair.flip(0)]
        order[pair] = order[pair.flip(0)]
        swaps += 1


def _principal_pivot(matrix: Float64[Tensor, "m m"], index: Int64[Tensor, " p"]) -> None:
    """Principal pivot transform on the rows and columns `index`, in place (Tucker, 1960)."""
    block = torch.linalg.inv(matrix[index[:, None], index])
    rows, columns = block @ matrix[index], matrix[:, index].clone()
    matrix.addmm_(columns, rows, alpha=-1.0)
    matrix[index] = -rows
    matrix[:, index] = columns @ block
    matrix[index[:, None], index] = block


def _refactor(
    triangle: Float64[Tensor, "r m"],
    scaled: Float64[Tensor, "r m"],
    order: Int64[Tensor, " m"],
    kept: int,
) -> PivotedCholesky:
    """R with the chosen columns first, pivoted among themselves, then the rest likewise."""
    first = column_pivoted_qr(scaled[:, order[:kept]], None, kept).order
    inside = order[:kept][first]
    q = torch.linalg.qr(triangle[:, inside], mode="complete").Q
    outside = order[kept:]
    lower = q[:, kept:].T @ triangle[:, outside]
    weights = torch.linalg.vector_norm(scaled[:, outside], dim=0) / torch.linalg.vector_norm(
        triangle[:, outside], dim=0
    ).clamp(min=torch.finfo(triangle.dtype).tiny)
    if len(lower):
        outside = outside[column_pivoted_qr(lower, weights).order]
    final = torch.cat([inside, outside])
    r = torch.linalg.qr(triangle[:, final], mode="r").R
    return factor_of(r, final, len(r))
