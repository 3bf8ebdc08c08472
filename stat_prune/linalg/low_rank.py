"""Low-rank factors of a tall matrix, such as a table of embeddings, in a weighted norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stat_prune.linalg.checks import (
    check_choice,
    check_finite,
    check_gram,
    check_matrix,
    check_rank,
)
from stat_prune.linalg.pivoting.cholesky import pivoted_cholesky
from stat_prune.linalg.pivoting.ranks import relative_errors
from stat_prune.linalg.streaming.centred import add_upper_gram, mirror_upper

BLOCK_ROWS = 4096


@dataclass
class LowRank:
    """E ≈ F T + 1 cᵀ for every rank, nested: a smaller rank is a part of a larger one.

    Attributes
    ----------
    mean : Tensor of shape (m,), float64
        Weighted mean row, or zero.
    error_curve : Tensor of shape (r + 1,), float64
        ‖D(E - F T - 1 cᵀ)M^½‖_F / ‖D(E - 1 meanᵀ)M^½‖_F for the ranks 0..r, D² holding the weights
        of the rows and M the metric of the columns; r is the numerical rank where columns are
        chosen, else m.
    energy : float
        ‖D(E - 1 meanᵀ)M^½‖²_F, which these are relative to.
    """

    mean: Float64[Tensor, " m"]
    error_curve: Float64[Tensor, " curve"]
    energy: float
    _basis: Callable[[int], Tensor] = field(repr=False)
    _encoder: Tensor | None = field(default=None, repr=False)
    _columns: Tensor | None = field(default=None, repr=False)

    def factors(
        self, table: Tensor, rank: int
    ) -> tuple[Float[Tensor, "n k"], Float64[Tensor, "k m"], Float64[Tensor, " m"]]:
        """F, T and c of one rank.

        Parameters
        ----------
        table : Tensor of shape (n, m)
            E: the matrix that was decomposed, or other rows of its kind.
        rank : int
            k, in 0..r.

        Returns
        -------
        F : Tensor of shape (n, k), dtype of `table`
            Each of its rows is the best for its row of E in the metric; where columns were chosen,
            these columns of E to the bit.
        T : Tensor of shape (k, m), float64
        c : Tensor of shape (m,), float64

        Raises
        ------
        TypeError, ValueError
            If `table` is no matrix of m columns, or `rank` is out of range.
        """
        _check_width(check_matrix(table, "table"), len(self.mean))
        check_rank(rank, len(self.error_curve) - 1)
        basis = self._basis(rank)
        if self._columns is not None:
            kept = self._columns[:rank]
            return table[:, kept], basis, self.mean - self.mean[kept] @ basis
        assert self._encoder is not None
        encoder = self._encoder[:, :rank]
        codes = [((rows - self.mean) @ encoder).to(table.dtype) for rows in blocks_of(table)]
        return torch.cat(codes), basis, self.mean


def low_rank(
    table: Tensor,
    *,
    row_weights: Tensor | None = None,
    metric: Tensor | None = None,
    centered: bool = True,
    decomposition: str = "svd",
) -> LowRank:
    """Factors F T + 1 cᵀ of a matrix E that are best in ‖D(E - F T - 1 cᵀ)M^½‖_F.

    With G = (E - 1 meanᵀ)ᵀD²(E - 1 meanᵀ), of size m x m and summed up in float64 over blocks of
    rows, and V the leading eigenvectors of M^½GM^½, the truncated singular value decomposition is
    F = (E - 1 meanᵀ)M^½V and T = VᵀM^-½. Its squared error is the sum of the eigenvalues left out,
    and no F T of that rank has a smaller one [1]_. The interpolative decomposition takes columns of
    E for F, by Cholesky of G with pivots of M^½'s diagonal scaling, and T by least squares; for
    given columns the same T is best in every metric.

    Parameters
    ----------
    table : Tensor of shape (n, m)
        E, any floating-point dtype.
    row_weights : Tensor of shape (n,), optional
        Diagonal of D²: how often each row is read. Default: 1 each.
    metric : Tensor of shape (m, m), float64, optional
        M, positive definite: second moments of what multiplies the rows. Default: the identity.
    centered : bool
        Take the weighted mean row apart.
    decomposition : {"svd", "interpolative"}

    Returns
    -------
    LowRank

    Raises
    ------
    TypeError, ValueError
        If an argument is malformed, not finite or negative; if all weights are zero; if `metric`
        is singular.

    References
    ----------
    .. [1] Eckart and Young (1936), The approximation of one matrix by another of lower rank,
       Psychometrika 1; Golub and Van Loan (2013), Matrix Computations, 4th ed., theorem 2.4.8.

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import low_rank
    >>> table = torch.tensor([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]])
    >>> codes, basis, mean = low_rank(table).factors(table, 1)
    >>> torch.allclose(codes.double() @ basis + mean, table.double(), atol=1e-6)
    True
    """
    check_choice(decomposition, "decomposition", ("svd", "interpolative"))
    check_finite(check_matrix(table, "table"), "table")
    weights = weights_of_rows(row_weights, len(table), table.device)
    gram, mean = weighted_gram(table, weights, centered=centered)
    root, inverse = metric_roots(metric, gram)
    if decomposition == "svd":
        return truncated_svd(root @ gram @ root, mean, root, inverse)
    return _interpolative(gram, mean, root)


def weighted_gram(
    table: Float[Tensor, "n m"], weights: Float64[Tensor, " n"], *, centered: bool
) -> tuple[Float64[Tensor, "m m"], Float64[Tensor, " m"]]:
    """The Gram matrix of the rows around their mean, each by its weight, and the mean, or zero."""
    m = table.shape[1]
    mean = table.new_zeros(m, dtype=torch.float64)
    if centered:
        for rows, w in zip(blocks_of(table), weights.split(BLOCK_ROWS), strict=True):
            mean += w @ rows
        mean /= weights.sum()
    gram = table.new_zeros(m, m, dtype=torch.float64)
    for rows, w in zip(blocks_of(table), weights.split(BLOCK_ROWS), strict=True):
        add_upper_gram(gram, (rows - mean) * w.sqrt()[:, None])
    mirror_upper(gram)
    return gram, mean


def truncated_svd(
    gram: Float64[Tensor, "m m"],
    mean: Float64[Tensor, " m"],
    root: Float64[Tensor, "m m"],
    inverse: Float64[Tensor, "m m"],
) -> LowRank:
    """Factors of every rank by M^½GM^½, the mean row, M^½ and its inverse."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.clamp(min=0.0).flip(0), vectors.flip(1)
    left_out = torch.cat([values, values.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    basis = vectors.T @ inverse
    return LowRank(
        mean,
        relative_errors(left_out),
        float(left_out[0]),
        lambda k: basis[:k],
        _encoder=root @ vectors,
    )


def _interpolative(
    gram: Float64[Tensor, "m m"],
    mean: Float64[Tensor, " m"],
    root: Float64[Tensor, "m m"],
) -> LowRank:
    factor = pivoted_cholesky(gram, column_weights=torch.linalg.vector_norm(root, dim=0))
    left_out = factor.residual_curve(root)
    curve, energy = relative_errors(left_out), float(left_out[0])
    return LowRank(mean, curve, energy, factor.interpolation, _columns=factor.order)


def blocks_of(table: Float[Tensor, "n m"]) -> Iterator[Float64[Tensor, "rows m"]]:
    """Some rows at a time in float64: the table itself may be all that fits."""
    return (rows.detach().to(torch.float64) for rows in table.split(BLOCK_ROWS))


def _check_width(table: Tensor, num_columns: int) -> None:
    if table.shape[1] != num_columns:
        raise ValueError(
            f"`table` must have the {num_columns} columns of the matrix that was decomposed, got "
            f"shape {tuple(table.shape)}."
        )


def weights_of_rows(
    row_weights: Tensor | None, num_rows: int, device: torch.device
) -> Float64[Tensor, " n"]:
    """Checked weights of the rows, by default 1 each."""
    if row_weights is None:
        return torch.ones(num_rows, dtype=torch.float64, device=device)
    weights = torch.as_tensor(row_weights, dtype=torch.float64, device=device)
    if weights.shape != (num_rows,):
        raise ValueError(
            f"`row_weights` must be one number a row ({num_rows}), got shape "
            f"{tuple(weights.shape)}."
        )
    check_finite(weights, "row_weights")
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ValueError(
            f"`row_weights` must be non-negative and not all zero, got {float(weights.min())} at "
            f"row {int(weights.argmin())}; add 1 to counts, so that no row is without a say."
        )
    return weights


def metric_roots(
    metric: Tensor | None, like: Float64[Tensor, "m m"]
) -> tuple[Float64[Tensor, "m m"], Float64[Tensor, "m m"]]:
    """The symmetric square root of the metric, and its inverse."""
    m = len(like)
    if metric is None:
        identity = torch.eye(m, dtype=torch.float64, device=like.device)
        return identity, identity
    if check_gram(metric, "metric").shape != like.shape:
        raise ValueError(f"`metric` must be {m} x {m}, got shape {tuple(metric.shape)}.")
    values, vectors = torch.linalg.eigh(metric.to(like.device))
    if float(values[0]) <= m * torch.finfo(torch.float64).eps * float(values[-1]):
        raise ValueError(
            f"`metric` must be positive definite, but its eigenvalues are {float(values[0]):.3g} "
            f"to {float(values[-1]):.3g}; add a multiple of the identity."
        )
    roots = values.sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
