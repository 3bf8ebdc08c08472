"""Pivoted Cholesky factorisation of a Gram matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from scipy.linalg import lapack
from torch import Tensor

from stat_prune.linalg.checks import (
    check_column_weights,
    check_gram,
    check_number,
    check_rank,
    check_seed,
)
from stat_prune.linalg.pivoting.blocked import blocked_cholesky
from stat_prune.linalg.pivoting.factor import PivotedCholesky

_CHUNK = 256

#: Columns that the default tolerance counts at least: the rounding of the Gram matrix itself, a sum
#: over rows, is more than that of the elimination where there are few columns.
_FEWEST = 64


def pivoted_cholesky(
    gram: Tensor,
    *,
    column_weights: Tensor | None = None,
    max_rank: int | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> PivotedCholesky:
    """Factor a Gram matrix by Cholesky with complete pivoting.

    The pivots are those of column-pivoted QR of A diag(w) where G = AᵀA, at the cost of m³/3
    operations rather than 4 n m². LAPACK's `dpstrf` on a CPU, a blocked algorithm in torch
    elsewhere.

    Parameters
    ----------
    gram : Tensor of shape (m, m), float64
        Symmetric positive semi-definite.
    column_weights : Tensor of shape (m,), optional
        Non-negative w: pivots are chosen on diag(w) G diag(w), the factor is that of G. Columns
        of weight zero are never chosen.
    max_rank : int, optional
        Largest number of pivots.
    tolerance : float, optional
        Stop when the largest remaining diagonal entry of diag(w) G diag(w) is at most
        `tolerance` times the largest one at the start. Default: m, or 64 if m is smaller, times
        the float64 epsilon.
    overwrite : bool
        Allow `gram` to be destroyed, which saves m² doubles.

    Returns
    -------
    PivotedCholesky

    Raises
    ------
    TypeError, ValueError
        If `gram` is not a finite float64 matrix with non-negative diagonal, or an option is out
        of range.

    References
    ----------
    Higham (2002), Accuracy and Stability of Numerical Algorithms, 2nd ed., section 10.3; Lucas
    (2004), LAPACK-style codes for level 2 and 3 pivoted Cholesky factorizations, LAWN 161.

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import pivoted_cholesky
    >>> gram = torch.tensor([[1.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    >>> found = pivoted_cholesky(gram)
    >>> found.order, found.rank
    (tensor([1, 0]), 2)
    >>> torch.allclose(found.factor @ found.factor.T, gram)
    True
    """
    factorise = _lapack if check_gram(gram).device.type == "cpu" else blocked_cholesky
    return _factor(gram, factorise, column_weights, max_rank, tolerance, overwrite)


def randomly_pivoted_cholesky(
    gram: Tensor,
    *,
    column_weights: Tensor | None = None,
    max_rank: int | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> PivotedCholesky:
    """Factor a Gram matrix by Cholesky with pivots drawn at random [1]_.

    Each pivot is drawn with probability proportional to what is left of the diagonal. For rank k
    within expected trace error (1 + ε) times the best rank-r error, k = r/ε + r log(1/(ε η))
    pivots suffice, η being the best relative error [1]_; greedy pivoting has no such bound.

    Parameters
    ----------
    gram, column_weights, max_rank, tolerance, overwrite
        As of `pivoted_cholesky`.
    seed : int
        Determines the draw, on each kind of device.

    Returns
    -------
    PivotedCholesky

    Raises
    ------
    TypeError, ValueError
        As `pivoted_cholesky`.

    References
    ----------
    .. [1] Chen, Epperly, Tropp and Webber (2025), Randomly pivoted Cholesky: practical
       approximation of a kernel matrix with few entry evaluations, Comm. Pure Appl. Math. 78(5).

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import randomly_pivoted_cholesky
    >>> found = randomly_pivoted_cholesky(torch.eye(3, dtype=torch.float64), max_rank=2, seed=0)
    >>> found.rank, float(found.remainder.sum())
    (2, 1.0)
    """
    check_gram(gram)
    generator = torch.Generator(device=gram.device).manual_seed(check_seed(seed))

    def factorise(
        work: Float64[Tensor, "m m"], threshold: float, limit: int
    ) -> tuple[Float64[Tensor, "m r"], Int64[Tensor, " m"]]:
        def draw(remaining: Tensor) -> Tensor:
            weights = torch.where(remaining > threshold, remaining, 0.0)
            # Nothing left: any pivot does, for the factorisation ends there.
            weights += (weights.sum() == 0).to(weights.dtype)
            return torch.multinomial(weights, 1, generator=generator)

        return blocked_cholesky(work, threshold, limit, draw)

    return _factor(gram, factorise, column_weights, max_rank, tolerance, overwrite)


def _factor(
    gram: Float64[Tensor, "m m"],
    factorise: Callable[[Tensor, float, int], tuple[Tensor, Tensor]],
    column_weights: Tensor | None,
    max_rank: int | None,
    tolerance: float | None,
    overwrite: bool,
) -> PivotedCholesky:
    """Scale by the column weights, factor, and take the scaling back out."""
    m = len(gram)
    limit = m if max_rank is None else check_rank(max_rank, m, "max_rank")
    relative = max(m, _FEWEST) * torch.finfo(torch.float64).eps
    if tolerance is not None:
        relative = max(check_number(tolerance, "tolerance", strict=True), relative)
    diagonal = gram.diagonal().clone()
    weights = torch.ones_like(diagonal)
    if column_weights is not None:
        weights = check_column_weights(column_weights, m, gram)
        weights = weights / weights.max().clamp(min=torch.finfo(torch.float64).tiny)
    silent = (weights == 0).nonzero().squeeze(1)
    silent_rows = gram[silent]
    work = gram if overwrite else gram.clone()
    if column_weights is not None:
        work *= weights
        work *= weights[:, None]
    factor, order = factorise(work, float(work.diagonal().max()) * relative, limit)
    rank = factor.shape[1]
    pivots = order[:rank]
    if column_weights is not None:
        weights[silent] = 1.0
        factor /= weights[:, None]
        # Columns of weight zero had no say in the pivots; their rows of the factor follow from G.
        if len(silent):
            factor[silent] = torch.linalg.solve_triangular(
                factor[pivots], silent_rows[:, pivots].T, upper=False
            ).T
    remainder = diagonal
    for columns in factor.split(_CHUNK, dim=1):
        remainder = remainder - columns.square().sum(dim=1)
    remainder[pivots] = 0.0
    return PivotedCholesky(
        order, factor, rank, remainder.clamp_(min=0.0), None if overwrite else gram
    )


def _lapack(
    work: Float64[Tensor, "m m"], threshold: float, limit: int
) -> tuple[Float64[Tensor, "m r"], Int64[Tensor, " m"]]:
    """Factor and order by LAPACK's dpstrf; the factor takes the memory of `work`."""
    # The transpose of a C-ordered symmetric matrix is the Fortran-ordered matrix LAPACK wants.
    packed, pivots, rank, _ = lapack.dpstrf(work.numpy().T, tol=threshold, lower=1, overwrite_a=1)
    order = torch.from_numpy(pivots.astype("int64")) - 1
    factor = torch.from_numpy(packed)[:, : min(int(rank), limit)]
    # Rows of the transpose are contiguous; some at a time, so that no second matrix is needed.
    inverse = torch.argsort(order)
    for columns in factor.T.triu_().split(_CHUNK):
        columns.copy_(columns.index_select(1, inverse))
    return factor, order
