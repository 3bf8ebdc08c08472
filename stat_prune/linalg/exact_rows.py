"""Low-rank factors of a tall matrix of which some rows are kept as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from stat_prune.linalg.checks import check_finite, check_matrix, check_rank
from stat_prune.linalg.low_rank import (
    BLOCK_ROWS,
    LowRank,
    blocks_of,
    metric_roots,
    truncated_svd,
    weighted_gram,
    weights_of_rows,
)

#: Of the whole table's squared norm, what sums of eigenvalues may be wrong by.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ExactRows:
    """What factors F T + 1 cᵀ leave of the other rows of E, by rank and number of exact rows.

    Attributes
    ----------
    order : Tensor of shape (n,), int64
        Rows, the one with the largest error first: exact rows are the first of these.
    counts : sequence of int
        Numbers of exact rows, ascending from 0.
    errors : Tensor of shape (counts, m + 1), float64
        ‖D(E - F T - 1 cᵀ)M^½‖² of the other rows, for the ranks 0..m of their best factors.
    """

    order: Int64[Tensor, " n"]
    counts: Sequence[int]
    errors: Float64[Tensor, "counts ranks"]

    def within(
        self, room: float, *, per_rank: float, per_row: float, multiple: int = 1
    ) -> tuple[int, int] | None:
        """The rank, and the number of exact rows, of the least error for what they take together.

        Parameters
        ----------
        room : float
            What rank and rows may take.
        per_rank, per_row : float
            What each takes; but an exact row takes one number less for each rank, as it has no row
            of F.
        multiple : int
            What the rank is kept to multiples of, where it is not smaller.

        Returns
        -------
        rank, num_exact : int
            Of these numbers of exact rows the best, and as many more as there is room for beside
            its rank. Of equal errors that of the fewest rows. None where no rank of 1 fits.
        """
        rounding = _ROUNDING * float(self.errors[0, 0])
        best: tuple[float, int, int] | None = None
        for count, errors in zip(self.counts, self.errors, strict=True):
            most = (room - count * per_row) / (per_rank - count)
            rank = min(int(most * (1 + 1e-12)), len(errors) - 1)
            rank -= rank % multiple if rank >= multiple else 0
            if rank >= 1 and (best is None or float(errors[rank]) < best[0] - rounding):
                best = float(errors[rank]), rank, count
        if best is None:
            return None
        _, rank, count = best
        if count:
            count = max(
                count, min(int((room - rank * per_rank) / (per_row - rank)), self.counts[-1])
            )
        return rank, count


def exact_rows(
    table: Tensor,
    *,
    row_weights: Tensor | None = None,
    metric: Tensor | None = None,
    rank: int = 0,
    most: int | None = None,
) -> ExactRows:
    """What is left of a matrix E by factors of every rank beside some rows that are kept exactly.

    Low rank and row-sparse parts together are what robust principal components by outlier pursuit
    find [1]_; here the rows are those of which the best factors of all rows, of one rank, leave
    most. They are nested, so that one Gram matrix, from which they leave one after another, has
    the errors of all ranks and numbers of rows: the eigenvalues left out of that of the rows that
    stay, around their own mean [2]_.

    Parameters
    ----------
    table : Tensor of shape (n, m)
        E, any floating-point dtype.
    row_weights : Tensor of shape (n,), optional
        Diagonal of D². Default: 1 each.
    metric : Tensor of shape (m, m), float64, optional
        M, positive definite. Default: the identity.
    rank : int
        Of the factors that say which rows are the first. Default: of the mean row alone.
    most : int, optional
        Exact rows at most, fewer than n. Default: n - 1.

    Returns
    -------
    ExactRows
        For `most` rows, half of that, a quarter and so on, and none.

    Raises
    ------
    TypeError, ValueError
        As `low_rank` does.

    References
    ----------
    .. [1] Xu, Caramanis and Sanghavi (2012), Robust PCA via outlier pursuit, IEEE Transactions on
       Information Theory 58.
    .. [2] Eckart and Young (1936), The approximation of one matrix by another of lower rank,
       Psychometrika 1.

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import exact_rows
    >>> table = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [9.0, -9.0]])
    >>> exact_rows(table).within(7.0, per_rank=6.0, per_row=2.0)
    (1, 1)
    """
    return WeightedTable(table, row_weights=row_weights, metric=metric).exact_rows(rank, most)


class _Rest(NamedTuple):
    """Weighted sums over the rows that stay, around the mean of all rows, in the metric."""

    gram: Float64[Tensor, "m m"]
    shift: Float64[Tensor, " m"]
    weight: Float64[Tensor, ""]

    def around_own_mean(self) -> Float64[Tensor, "m m"]:
        """Their Gram matrix: the mean of the rows that stay is another one."""
        return self.gram - self.shift.outer(self.shift) / self._divisor

    def own_mean(self) -> Float64[Tensor, " m"]:
        """From the mean of all rows."""
        return self.shift / self._divisor

    @property
    def _divisor(self) -> Float64[Tensor, ""]:
        return self.weight.clamp_min(torch.finfo(torch.float64).tiny)


class WeightedTable:
    """A tall matrix, and its Gram matrix, computed once for all ranks and exact rows.

    Parameters
    ----------
    table, row_weights, metric
        As for `exact_rows`.
    """

    def __init__(
        self, table: Tensor, *, row_weights: Tensor | None = None, metric: Tensor | None = None
    ) -> None:
        check_finite(check_matrix(table, "table"), "table")
        self._table = table
        self._weights = weights_of_rows(row_weights, len(table), table.device)
        gram, self._mean = weighted_gram(table, self._weights, centered=True)
        self._root, self._inverse = metric_roots(metric, gram)
        self._gram = self._root @ gram @ self._root
        self._directions = torch.linalg.eigh(self._gram).eigenvectors

    def exact_rows(self, rank: int = 0, most: int | None = None) -> ExactRows:
        """The errors beside exact rows, as the function of that name gives them."""
        n, m = self._table.shape
        check_rank(rank, m)
        left_out = self._root @ self._directions[:, : m - rank]
        sizes = [
            ((rows - self._mean) @ left_out).square().sum(1) for rows in blocks_of(self._table)
        ]
        order = (torch.cat(sizes) * self._weights).argsort(descending=True, stable=True)
        most = n - 1 if most is None else max(min(most, n - 1), 0)
        counts = sorted({most >> halvings for halvings in range(most.bit_length() + 1)})
        rest, errors, done = self._all_rows(), [], 0
        for count in counts:
            rest, done = self._without(rest, order[done:count]), count
            values = torch.linalg.eigvalsh(rest.around_own_mean()).clamp(min=0.0)
            errors.append(torch.cat([values.new_zeros(1), values.cumsum(0)]).flip(0))
        return ExactRows(order, counts, torch.stack(errors))

    def beside(self, exact: Tensor) -> LowRank:
        """The factors of every rank of all rows but some, as `low_rank` finds them.

        Parameters
        ----------
        exact : Tensor of shape (k,), int64
            Rows that are kept exactly, each once; fewer than all.
        """
        rest = self._without(self._all_rows(), exact)
        mean = self._mean + self._inverse @ rest.own_mean()
        return truncated_svd(rest.around_own_mean(), mean, self._root, self._inverse)

    def _all_rows(self) -> _Rest:
        shift = self._table.new_zeros(len(self._gram), dtype=torch.float64)
        return _Rest(self._gram, shift, self._weights.sum())

    def _without(self, rest: _Rest, leaving: Tensor) -> _Rest:
        gram, shift, weight = rest
        for at in leaving.split(BLOCK_ROWS):
            rows = (self._table[at].detach().to(torch.float64) - self._mean) @ self._root
            weighed = rows * self._weights[at][:, None]
            gram = gram - weighed.T @ rows
            shift, weight = shift - weighed.sum(0), weight - self._weights[at].sum()
        return _Rest(gram, shift, weight)
