"""Pivoted Cholesky factorisation of a Gram matrix: one decomposition for every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from scipy.linalg import lapack
from torch import Tensor

from .checks import check_column_weights, check_gram, check_number, check_rank, check_weight

_BLOCK = 64


@dataclass
class PivotedCholesky:
    """G ≈ F Fᵀ with F lower triangular in pivot order.

    Attributes
    ----------
    order : Tensor of shape (m,), int64
        The r pivots in pivot order, then the columns never chosen.
    factor : Tensor of shape (m, r), float64
        F, its rows in the original order of the columns: `factor[order[:r]]` is lower triangular.
    rank : int
        r: the numerical rank, or `max_rank` where that is smaller.
    remainder : Tensor of shape (m,), float64
        Diagonal of G - F Fᵀ: the squared norms that r pivots leave.
    gram : Tensor of shape (m, m) or None
        The matrix that was factored (not a copy); None if it was overwritten.
    """

    order: Int64[Tensor, " m"]
    factor: Float64[Tensor, "m r"]
    rank: int
    remainder: Float64[Tensor, " m"]
    gram: Float64[Tensor, "m m"] | None = None

    def residual_curve(self, weight: Tensor | None = None) -> Float64[Tensor, "{self.rank}+1"]:
        """Squared Frobenius error ‖(A - A_J T) Wᵀ‖² after keeping the first k pivots, k = 0..r.

        With S_k the Schur complement after k pivots this is tr(W S_k Wᵀ), the sum of
        ‖W F[:, j]‖² over j >= k, and what lies beyond rank r.

        Parameters
        ----------
        weight : Tensor of shape (d, m), optional
            W, any floating-point dtype. Default: the identity.

        Returns
        -------
        Tensor of shape (r + 1,), float64
            Non-increasing, in the squared unit of the columns (times that of `weight`).
        """
        if weight is None:
            energy = torch.linalg.vector_norm(self.factor, dim=0).square()
            beyond = self.remainder.sum()
        else:
            matrix = check_weight(weight, len(self.order), self.factor.device)
            energy = torch.linalg.vector_norm(matrix @ self.factor, dim=0).square()
            beyond = self._beyond(matrix, energy.sum())
        tails = torch.cat([energy, beyond.reshape(1)]).flip(0).cumsum(0).flip(0)
        return tails

    def _beyond(self, weight: Float64[Tensor, "d m"], seen: Tensor) -> Tensor:
        """tr(W S_r Wᵀ): exactly where rank was cut short, else from the diagonal of S_r."""
        if self.gram is not None and float(self.remainder.sum()) > 0:
            total = ((weight @ self.gram) * weight).sum()
            return (total - seen).clamp(min=0.0)
        return self.remainder @ weight.square().sum(dim=0)

    def interpolation(self, rank: int) -> Float64[Tensor, "{rank} m"]:
        """Least-squares T of A ≈ A[:, order[:k]] T, from triangular solves with the factor.

        Parameters
        ----------
        rank : int
            k, the number of columns kept, in 0..m. Columns kept beyond the numerical rank r stand
            for themselves and serve no other column.

        Returns
        -------
        Tensor of shape (k, m), float64
            Exactly the identity on the kept columns `order[:k]`.
        """
        m = len(self.order)
        check_rank(rank, m)
        used = min(rank, self.rank)
        kept, rest = self.order[:rank], self.order[rank:]
        interpolation = self.factor.new_zeros(rank, m)
        triangle = self.factor[kept[:used], :used]
        interpolation[:used, rest] = torch.linalg.solve_triangular(
            triangle.T, self.factor[rest, :used].T, upper=True
        )
        interpolation[torch.arange(rank, device=kept.device), kept] = 1.0
        return interpolation


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
        `tolerance` times the largest one at the start. Default: m times the float64 epsilon.
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
    """
    check_gram(gram)
    m = len(gram)
    limit = m if max_rank is None else check_rank(max_rank, m, "max_rank")
    relative = m * torch.finfo(torch.float64).eps
    if tolerance is not None:
        relative = max(check_number(tolerance, "tolerance", strict=True), relative)
    diagonal = gram.diagonal().clone()
    if column_weights is None:
        weights = torch.ones_like(diagonal)
    else:
        weights = check_column_weights(column_weights, m, gram)
        weights = weights / weights.max().clamp(min=torch.finfo(torch.float64).tiny)
    silent = (weights == 0).nonzero().squeeze(1)
    silent_rows = gram[silent]
    work = gram if overwrite else gram.clone()
    work *= weights
    work *= weights[:, None]
    threshold = float(work.diagonal().max()) * relative

    factorise = _lapack if gram.device.type == "cpu" else blocked_cholesky
    factor, order = factorise(work, threshold, limit)
    rank = factor.shape[1]
    weights[silent] = 1.0
    factor /= weights[:, None]
    # Columns of weight zero had no say in the pivots; their rows of the factor follow from G.
    pivots = order[:rank]
    factor[silent] = torch.linalg.solve_triangular(
        factor[pivots], silent_rows[:, pivots].T, upper=False
    ).T
    remainder = diagonal - torch.linalg.vector_norm(factor, dim=1).square()
    remainder[pivots] = 0.0
    return PivotedCholesky(order, factor, rank, remainder.clamp_(min=0.0), None if overwrite else gram)


def _lapack(
    work: Float64[Tensor, "m m"], threshold: float, limit: int
) -> tuple[Float64[Tensor, "m r"], Int64[Tensor, " m"]]:
    """Factor and order by LAPACK's dpstrf; `work` is overwritten."""
    # The transpose of a C-ordered symmetric matrix is the Fortran-ordered matrix LAPACK wants;
    # its upper factor U, read back in C order, is the lower factor.
    packed, pivots, rank, _ = lapack.dpstrf(work.numpy().T, tol=threshold, overwrite_a=1)
    rank = min(int(rank), limit)
    lower = torch.from_numpy(packed.T)
    order = torch.from_numpy(pivots.astype("int64")) - 1
    factor = lower.new_empty(len(order), rank)
    factor[order] = lower[:, :rank].tril()
    return factor, order


def blocked_cholesky(
    work: Float64[Tensor, "m m"], threshold: float, limit: int
) -> tuple[Float64[Tensor, "m r"], Int64[Tensor, " m"]]:
    """Factor and order in torch, on any device; `work` is overwritten by the Schur complement.

    Rows are not swapped: the pivot's row of the Schur complement is read where it lies, so that
    no step waits for the device. One synchronisation a block finds out whether rank ran out.
    """
    m = len(work)
    factor = work.new_zeros(m, limit)
    order = torch.empty(limit, dtype=torch.int64, device=work.device)
    remaining = work.diagonal().clone()
    rank = 0
    for start in range(0, limit, _BLOCK):
        stop = min(start + _BLOCK, limit)
        panel = factor[:, start:stop]
        found = torch.empty(stop - start, dtype=torch.float64, device=work.device)
        for j in range(stop - start):
            pivot = remaining.argmax().reshape(1)
            value = remaining[pivot]
            row = work[pivot].squeeze(0)
            column = torch.addmv(row, panel[:, :j], panel[pivot, :j].squeeze(0), alpha=-1.0)
            column *= (remaining > -torch.inf) * value.clamp(min=threshold).rsqrt()
            panel[:, j] = column
            remaining -= column.square()
            remaining[pivot] = -torch.inf
            order[start + j], found[j] = pivot[0], value[0]
        valid = int((found > threshold).long().cumprod(0).sum())
        rank = start + valid
        if valid < stop - start:
            break
        work.addmm_(panel, panel.T, alpha=-1.0)
    chosen = torch.zeros(m, dtype=torch.bool, device=work.device)
    chosen[order[:rank]] = True
    rest = (~chosen).nonzero().squeeze(1)
    return factor[:, :rank].contiguous(), torch.cat([order[:rank], rest])
