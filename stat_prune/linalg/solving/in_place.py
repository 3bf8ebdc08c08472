"""Factorisations and parts of symmetric matrices in the memory that the matrix has."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from scipy import linalg
from torch import Tensor

from stat_prune.linalg.streaming.centred import mirror_upper

# Rows that are moved at once.
_ROWS = 256


def cholesky(
    matrix: Float64[Tensor, "m m"],
) -> tuple[Float64[Tensor, "m m"], bool]:
    """A matrix with L of L Lᵀ in its lower triangle, and whether there is such an L.

    On a CPU it is the memory of the symmetric, contiguous `matrix`: above the diagonal it stays as
    it was, so that `undo_cholesky` can restore it. Elsewhere `matrix` is untouched.
    """
    if matrix.device.type != "cpu":
        factor, info = torch.linalg.cholesky_ex(matrix)
        return factor, not int(info)
    # The transpose of a C-ordered symmetric matrix is the Fortran-ordered matrix LAPACK wants.
    packed, info = linalg.lapack.dpotrf(matrix.numpy().T, lower=1, clean=0, overwrite_a=1)
    return torch.from_numpy(packed), not info


def undo_cholesky(matrix: Float64[Tensor, "m m"], diagonal: Float64[Tensor, " m"]) -> None:
    """Give a matrix that `cholesky` was applied to its values back; `diagonal` was its own."""
    if matrix.device.type == "cpu":
        mirror_upper(matrix.T)
        matrix.diagonal().copy_(diagonal)


def cholesky_solve(
    factor: Float64[Tensor, "m m"], right: Float64[Tensor, "m d"]
) -> Float64[Tensor, "m d"]:
    """Solve L Lᵀ X = `right`, L being the lower triangle of `factor`; X takes the place of `right`.

    Without a copy where the transpose of `right` is contiguous.
    """
    torch.linalg.solve_triangular(factor, right, upper=False, out=right)
    torch.linalg.solve_triangular(factor.mT, right, upper=True, out=right)
    return right


def eigh(matrix: Float64[Tensor, "m m"]) -> tuple[Float64[Tensor, " m"], Float64[Tensor, "m m"]]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric, contiguous matrix.

    On a CPU the vectors take its memory, and LAPACK's `dsyevd` two more of that size meanwhile.
    """
    if matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    found = linalg.eigh(matrix.numpy().T, overwrite_a=True, check_finite=False, driver="evd")
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def principal_part(
    matrix: Float64[Tensor, "m m"], index: Int64[Tensor, " k"], *, overwrite: bool = False
) -> Float64[Tensor, "k k"]:
    """Rows and columns `index` of a matrix; with `overwrite`, which it destroys, in its memory.

    That needs `index` to ascend and `matrix` to be contiguous.
    """
    if not overwrite:
        return matrix[index[:, None], index]
    size = len(index)
    part = matrix.view(-1)[: size * size].view(size, size)
    # Row i goes to where rows up to the i-th of `matrix` were, and comes from there or behind.
    for start in range(0, size, _ROWS):
        rows = matrix.index_select(0, index[start : start + _ROWS]).index_select(1, index)
        part[start : start + _ROWS] = rows
    return part
