"""A pivoted triangular factor: one decomposition that serves every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from stat_prune.linalg.checks import check_rank, check_weight

_COLUMNS = 1024


@dataclass
class PivotedCholesky:
    """G ≈ F Fᵀ with F lower triangular in pivot order; Fᵀ is the R of a pivoted QR.

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

    def residual_curve(self, weight: Tensor | None = None) -> Float64[Tensor, " curve"]:
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
            Non-increasing, in the squared unit of the columns (times that of `weight`). If the
            rank was cut short by `max_rank` and the Gram matrix was overwritten, what lies beyond
            rank r is taken as uncorrelated.

        Raises
        ------
        TypeError, ValueError
            If `weight` is not a finite floating-point matrix of m columns on the same device.
        """
        if weight is None:
            energy = torch.linalg.vector_norm(self.factor, dim=0).square()
            beyond = self.remainder.sum()
        else:
            matrix = check_weight(weight, len(self.order), self.factor.device)
            # Some columns at a time: the product would be as large again as the weight.
            norms = [
                torch.linalg.vector_norm(matrix @ columns, dim=0)
                for columns in self.factor.split(_COLUMNS, dim=1)
            ]
            energy = torch.cat(norms).square()
            beyond = self._beyond(matrix, energy.sum())
        return torch.cat([energy, beyond.reshape(1)]).flip(0).cumsum(0).flip(0)

    def _beyond(self, weight: Float64[Tensor, "d m"], seen: Tensor) -> Tensor:
        """tr(W S_r Wᵀ): exactly where the rank was cut short, else from the diagonal of S_r."""
        if self.gram is not None:
            rounding = len(self.gram) * torch.finfo(torch.float64).eps
            if float(self.remainder.max()) > rounding * float(self.gram.diagonal().max()):
                return (((weight @ self.gram) * weight).sum() - seen).clamp(min=0.0)
        norms: Tensor = torch.linalg.vector_norm(weight, dim=0)
        return self.remainder @ norms.square()

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

        Raises
        ------
        TypeError, ValueError
            If `rank` is not an integer in 0..m.
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
