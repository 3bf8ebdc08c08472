"""The result of an interpolative decomposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from stat_prune.linalg.checks import check_matrix, check_rank


@dataclass
class InterpolativeDecomposition:
    """A ≈ A[:, columns] @ interpolation.

    Attributes
    ----------
    columns : Tensor of shape (k,), int64
        J, the columns kept, in the order in which they were chosen.
    interpolation : Tensor of shape (k, m), float64
        T, by least squares; exactly the identity on `columns`.
    error : float
        ‖A - A_J T‖_F / ‖A‖_F; decomposing a sketch, that of the sketch. 0 where A is zero.
    error_curve : Tensor of shape (r / group_size + 1,), float64
        The same for every rank 0, group_size, 2 group_size, ... up to the numerical rank r.
    group_size : int
        Columns that are kept or left together.
    """

    columns: Int64[Tensor, " k"]
    interpolation: Float64[Tensor, "k m"]
    error: float
    error_curve: Float64[Tensor, " curve"]
    group_size: int = 1
    _solve: Callable[[int], Tensor] | None = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        """Number of columns kept."""
        return len(self.columns)

    def truncate(self, rank: int) -> InterpolativeDecomposition:
        """The decomposition that keeps the first `rank` columns; nothing is chosen again.

        Parameters
        ----------
        rank : int
            At most the rank of this one, and a multiple of the group size.

        Returns
        -------
        InterpolativeDecomposition

        Raises
        ------
        TypeError, ValueError
            If `rank` is not such an integer, or this object was made without its factor.
        """
        check_rank(rank, self.rank)
        if self._solve is None:
            raise ValueError("only what interpolative_decomposition() returned can be truncated.")
        return build(self.columns, rank, self.error_curve, self.group_size, self._solve)

    def to_svd(
        self, skeleton: Tensor
    ) -> tuple[Float64[Tensor, "n k"], Float64[Tensor, " k"], Float64[Tensor, "m k"]]:
        """Singular value decomposition U diag(S) Vᵀ of A_J T.

        Parameters
        ----------
        skeleton : Tensor of shape (n, k)
            A_J = A[:, columns], n >= k, any floating-point dtype.

        Returns
        -------
        U : Tensor of shape (n, k), float64
        S : Tensor of shape (k,), float64
            In descending order.
        V : Tensor of shape (m, k), float64

        Raises
        ------
        TypeError, ValueError
            If `skeleton` is not a floating-point matrix of k columns and at least k rows.
        """
        check_matrix(skeleton, "skeleton")
        if skeleton.shape[1] != self.rank or len(skeleton) < self.rank:
            raise ValueError(
                f"`skeleton` must be A[:, columns], with {self.rank} columns and at least as many "
                f"rows, got shape {tuple(skeleton.shape)}."
            )
        q, triangle = torch.linalg.qr(skeleton.to(torch.float64))
        left, values, right = torch.linalg.svd(triangle @ self.interpolation, full_matrices=False)
        return q @ left, values, right.T


def build(
    order: Int64[Tensor, " n"],
    rank: int,
    error_curve: Float64[Tensor, " curve"],
    group_size: int,
    solve: Callable[[int], Tensor],
) -> InterpolativeDecomposition:
    """The decomposition of the first `rank` columns of `order`."""
    if rank % group_size:
        raise ValueError(f"`rank` must be a multiple of the group size {group_size}, got {rank}.")
    step = min(rank // group_size, len(error_curve) - 1)
    return InterpolativeDecomposition(
        columns=order[:rank],
        interpolation=solve(rank),
        error=float(error_curve[step]),
        error_curve=error_curve,
        group_size=group_size,
        _solve=solve,
    )
