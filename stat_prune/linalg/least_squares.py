"""Least squares from accumulated moments: the correction of the kept columns."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float64
from torch import Tensor

from .checks import check_columns, check_gram, check_number
from .errors import NumericalWarning

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


def solve_normal(
    normal: Float64[Tensor, "k k"],
    cross: Float64[Tensor, "k d"],
    ridge: float,
    max_entry: float | None = None,
) -> Float64[Tensor, "k d"]:
    """Solve `normal` X = `cross` for positive semi-definite `normal`, which is overwritten."""
    if not len(normal):
        return cross.clone()
    # Unit diagonal: the best scaling but for a factor of k (van der Sluis, 1969), and columns of
    # 1e-30 and of 1e30 are then alike.
    diagonal = normal.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    normal = normal.mul_(scale).mul_(scale[:, None])
    right = cross * scale[:, None]
    normal.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(normal)
    threshold = len(normal) * _EPS
    if not int(info) and float(factor.diagonal().min()) ** 2 > threshold:
        solution = torch.cholesky_solve(right, factor)
    else:
        solution = _truncated_solve(normal, right, ridge)
    solution *= scale[:, None]
    if max_entry is not None:
        check_number(max_entry, "max_entry", minimum=0.0, strict=True)
        solution = _bounded(normal, right, scale, solution, max_entry)
    return solution


def _truncated_solve(
    normal: Float64[Tensor, "k k"], right: Float64[Tensor, "k d"], ridge: float
) -> Float64[Tensor, "k d"]:
    """Least-norm solution on the eigenvectors whose eigenvalue is above rounding error."""
    values, vectors = torch.linalg.eigh(normal)
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
    return (vectors * inverse) @ (vectors.T @ right)


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
