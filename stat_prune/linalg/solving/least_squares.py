"""Least squares from accumulated moments: the correction of the kept columns."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float64
from torch import Tensor

from stat_prune.linalg.checks import (
    check_columns,
    check_finite,
    check_gram,
    check_matrix,
    check_number,
    check_same_device,
)
from stat_prune.linalg.exceptions import NumericalWarning
from stat_prune.linalg.solving.in_place import cholesky, cholesky_solve, eigh, undo_cholesky

_EPS = torch.finfo(torch.float64).eps


def interpolation_from_gram(
    gram: Tensor,
    columns: Tensor,
    *,
    ridge: float = 0.0,
    max_entry: float | None = None,
) -> Float64[Tensor, "k m"]:
    """Least-squares T of A ≈ A_J T, from the Gram matrix G = AᵀA: solves G_JJ T = G_J:.

    Parameters
    ----------
    gram : Tensor of shape (m, m), float64
    columns : Tensor of shape (k,), integer
        J, distinct.
    ridge : float
        Added to the diagonal of G_JJ after its columns are scaled to unit norm, hence relative to
        each column's own squared norm.
    max_entry : float, optional
        Bound on |T_ij|: columns of T that exceed it are solved again with the smallest ridge, in
        steps of ten, that keeps them within.

    Returns
    -------
    Tensor of shape (k, m), float64
        Exactly the identity on the columns J.

    Raises
    ------
    TypeError, ValueError
        If an argument is malformed, out of range or not finite.

    Warns
    -----
    NumericalWarning
        If G_JJ is rank-deficient (then T is the solution of least norm of the columns scaled to
        unit norm, with the rank stated), or if entries had to be bounded.

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import interpolation_from_gram
    >>> a = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    >>> interpolation_from_gram(a.T @ a, torch.tensor([0, 1])).round(decimals=6)
    tensor([[1., 0., 2.],
            [0., 1., 3.]], dtype=torch.float64)
    """
    check_gram(gram)
    index = check_columns(columns, len(gram), gram.device)
    check_number(ridge, "ridge")
    keep = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    keep[index] = False
    rest = keep.nonzero().squeeze(1)
    result = gram.new_zeros(len(index), len(gram))
    cross = gram[index[:, None], rest]
    result[:, rest] = solve_normal(gram[index[:, None], index], cross, ridge, max_entry)
    result[torch.arange(len(index), device=gram.device), index] = 1.0
    return result


def least_squares_from_moments(
    gram: Tensor,
    cross: Tensor,
    *,
    ridge: float = 0.0,
    max_entry: float | None = None,
    holdout: tuple[Tensor, Tensor] | None = None,
) -> Float64[Tensor, "k d"]:
    """Least-squares B of X B ≈ Y, from XᵀX and XᵀY.

    Parameters
    ----------
    gram : Tensor of shape (k, k), float64
        XᵀX, for instance of `CrossMoments.normal_equations` or a part of `Moments.gram`; or of
        the rows of a sketch.
    cross : Tensor of shape (k, d), float64
        XᵀY.
    ridge : float
        Added to the diagonal of XᵀX after the columns of X are scaled to unit norm.
    max_entry : float, optional
        Bound on |B_ij|: columns that exceed it are solved again with the smallest ridge, in steps
        of ten, that keeps them within.
    holdout : tuple of Tensor, optional
        XᵀX and XᵀY of rows held out. The ridge is then the one, at least `ridge`, whose solution
        from `gram` and `cross` does best on them; B is solved with it on all rows together.

    Returns
    -------
    Tensor of shape (k, d), float64

    Raises
    ------
    TypeError, ValueError
        If an argument is malformed, out of range or not finite.

    Warns
    -----
    NumericalWarning
        If XᵀX is rank-deficient (then B is the solution of least norm for columns of X scaled to
        unit norm, with the rank stated), if held-out rows chose a ridge, or if entries had to be
        bounded.

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import least_squares_from_moments
    >>> x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    >>> least_squares_from_moments(x.T @ x, x.T @ (3 * x)).round(decimals=6)
    tensor([[3.]], dtype=torch.float64)
    """
    check_number(ridge, "ridge")
    _check_system(gram, cross, "gram", "cross")
    if holdout is None:
        return solve_normal(gram.clone(), cross, ridge, max_entry)
    held_gram, held_cross = holdout
    _check_system(held_gram, held_cross, "holdout[0]", "holdout[1]")
    if held_cross.shape != cross.shape:
        raise ValueError(
            f"`holdout` must have the shapes of `gram` and `cross`, got {tuple(held_cross.shape)} "
            f"for XᵀY against {tuple(cross.shape)}."
        )
    chosen = max(ridge, held_out_ridge(gram, cross, held_gram, held_cross))
    if chosen > ridge:
        warnings.warn(
            f"Held-out rows chose a ridge of {chosen:.1e} (relative to the squared norms of the "
            f"{len(gram)} columns).",
            NumericalWarning,
            stacklevel=2,
        )
    return solve_normal(gram + held_gram, cross + held_cross, chosen, max_entry)


def _check_system(gram: Tensor, cross: Tensor, gram_name: str, cross_name: str) -> None:
    check_gram(gram, gram_name)
    check_matrix(cross, cross_name)
    check_same_device(cross, cross_name, gram.device)
    if len(cross) != len(gram) or cross.dtype != torch.float64:
        raise ValueError(
            f"`{cross_name}` must be float64 with {len(gram)} rows, got {cross.dtype} of shape "
            f"{tuple(cross.shape)}."
        )
    check_finite(cross, cross_name)


def held_out_ridge(
    gram: Float64[Tensor, "k k"],
    cross: Float64[Tensor, "k d"],
    held_gram: Float64[Tensor, "k k"],
    held_cross: Float64[Tensor, "k d"],
) -> float:
    """The ridge, zero or in steps of sqrt(10) from rounding error to one, best on held-out rows.

    In the eigenbasis of the scaled XᵀX, B(λ) = V diag(φ) P with P = VᵀXᵀY and
    φ_i = 1/(λ_i + λ); so the squared error on held-out rows is a constant plus
    φᵀ(PPᵀ ∘ VᵀGV)φ - 2 φᵀ rowsum(P ∘ VᵀC), and each λ costs k² operations only.
    """
    scale = unit_scale(gram)
    values, vectors = torch.linalg.eigh(gram * scale * scale[:, None])
    vectors = vectors * scale[:, None]
    projected = vectors.T @ cross
    linear = (projected * (vectors.T @ held_cross)).sum(dim=1)
    quadratic = (projected @ projected.T) * (vectors.T @ held_gram @ vectors)
    cutoff = len(gram) * _EPS * float(values[-1])

    def error(ridge: float) -> float:
        inverse = torch.where(values > cutoff, 1.0 / (values + ridge), 0.0)
        return float(inverse @ quadratic @ inverse - 2.0 * (inverse @ linear))

    ridges: list[float] = [0.0, *(10.0 ** (step / 2) for step in range(-26, 1))]
    return min(ridges, key=error)


def unit_scale(gram: Float64[Tensor, "k k"]) -> Float64[Tensor, " k"]:
    """What scales the columns of X to unit norm; 1 for columns that are zero.

    No diagonal scaling is better by more than a factor of k in the condition number (van der
    Sluis, 1969), and columns of 1e-30 and of 1e30 are then alike.
    """
    diagonal = gram.diagonal()
    return torch.where(diagonal > 0, diagonal, 1.0).rsqrt()


def solve_normal(
    normal: Float64[Tensor, "k k"],
    cross: Float64[Tensor, "k d"],
    ridge: float,
    max_entry: float | None = None,
    *,
    overwrite: bool = False,
) -> Float64[Tensor, "k d"]:
    """Solve `normal` X = `cross` for positive semi-definite `normal`, which is overwritten.

    With `overwrite`, so is `cross`: X takes its memory, where its transpose is contiguous.
    """
    if not len(normal):
        return cross.clone()
    scale = unit_scale(normal)
    normal = normal.contiguous().mul_(scale).mul_(scale[:, None])
    normal.diagonal().add_(ridge)
    diagonal = normal.diagonal().clone()
    right = cross.mul_(scale[:, None]) if overwrite else cross * scale[:, None]
    factor, found = cholesky(normal)
    if found and float(factor.diagonal().min()) ** 2 > len(normal) * _EPS:
        solution = cholesky_solve(factor, right if max_entry is None else right.clone())
    else:
        undo_cholesky(normal, diagonal)
        del factor
        # Eigenvectors take the memory of the matrix.
        system = normal if max_entry is None else normal.clone()
        solution = _truncated_solve(system, right, ridge)
    solution *= scale[:, None]
    if max_entry is not None:
        check_number(max_entry, "max_entry", minimum=0.0, strict=True)
        undo_cholesky(normal, diagonal)
        solution = _bounded(normal, right, scale, solution, max_entry)
    return solution


def _truncated_solve(
    normal: Float64[Tensor, "k k"], right: Float64[Tensor, "k d"], ridge: float
) -> Float64[Tensor, "k d"]:
    """Least-norm solution on the eigenvectors whose eigenvalue is above rounding error."""
    values, vectors = eigh(normal)
    cutoff = len(normal) * _EPS * float(values[-1])
    rank = int((values > cutoff).sum())
    warnings.warn(
        f"The {len(normal)} kept columns have numerical rank {rank} (ridge {ridge:.1e}, smallest "
        f"relative eigenvalue {float(values[0] / values[-1]):.1e}): the solution of least norm "
        "was taken. Keep fewer columns, use more rows, or pass a larger `ridge`.",
        NumericalWarning,
        stacklevel=4,
    )
    inverse = torch.where(values > cutoff, 1.0 / values, 0.0)
    return vectors @ (vectors.T @ right).mul_(inverse[:, None])


def _bounded(
    normal: Float64[Tensor, "k k"],
    right: Float64[Tensor, "k d"],
    scale: Float64[Tensor, " k"],
    solution: Float64[Tensor, "k d"],
    max_entry: float,
) -> Float64[Tensor, "k d"]:
    """Solve the columns with an entry above `max_entry` again, with growing ridge."""
    wild = (solution.abs().amax(dim=0) > max_entry).nonzero().squeeze(1)
    if not len(wild):
        return solution
    count, largest, ridge = len(wild), float(solution.abs().max()), len(normal) * _EPS
    values, vectors = torch.linalg.eigh(normal)
    projected = vectors.T @ right
    while len(wild):
        ridge *= 10.0
        inverse = 1.0 / (values.clamp(min=0.0) + ridge)
        trial = (vectors * inverse) @ projected[:, wild] * scale[:, None]
        solution[:, wild] = trial
        wild = wild[trial.abs().amax(dim=0) > max_entry]
    warnings.warn(
        f"{count} of {solution.shape[1]} columns had entries up to {largest:.1e}, above "
        f"max_entry={max_entry:g}: they were solved with a ridge of up to {ridge:.1e}.",
        NumericalWarning,
        stacklevel=4,
    )
    return solution
