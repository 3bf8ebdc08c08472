"""Backward elimination of single columns under the error that the next layer sees."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from stat_prune.linalg.checks import check_gram, check_weight
from stat_prune.linalg.pivoting.block_pivoting import positive_definite
from stat_prune.linalg.solving.least_squares import unit_scale

# Downdates that are gathered into one matrix product.
_BLOCK = 64
# After this share of the columns left, the inverse is computed anew: downdates lose accuracy where
# columns that were nearly dependent have gone.
_ROUND = 0.25


def backward_elimination(gram: Tensor, weight: Tensor) -> Int64[Tensor, " m"]:
    """Order columns by when they leave, each time the one that raises the error least.

    The error is ‖A Wᵀ - A_J Uᵀ‖² with U by least squares. Removing column j of those left raises
    it by ‖U_:j‖² / (H⁻¹)_jj, where H = G_JJ; U and H⁻¹ then follow by rank-one downdates, so that
    all m removals cost O(m³) operations, most of them in matrix products.

    Parameters
    ----------
    gram : Tensor of shape (m, m), float64
        G = AᵀA.
    weight : Tensor of shape (d, m)
        W.

    Returns
    -------
    Tensor of shape (m,), int64
        Columns, the last to leave first.

    Raises
    ------
    TypeError, ValueError
        If a matrix is malformed or not finite.

    Warns
    -----
    NumericalWarning
        If the Gram matrix needed a ridge.

    References
    ----------
    Hassibi and Stork (1993), Second order derivatives for network pruning: Optimal Brain Surgeon.

    Examples
    --------
    What the next layer reads least of leaves first, and comes last:

    >>> import torch
    >>> from stat_prune.linalg import backward_elimination
    >>> backward_elimination(torch.eye(3, dtype=torch.float64), torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([1, 2, 0])
    """
    check_gram(gram)
    matrix = check_weight(weight, len(gram), gram.device)
    # Errors do not depend on the scale of columns, conditioning does.
    scale = unit_scale(gram)
    damped, _ = positive_definite(gram * scale * scale[:, None])
    cross = damped @ (matrix / scale).T
    left = torch.arange(len(gram), device=gram.device)
    leaving = []
    while len(left):
        count = max(int(_ROUND * len(left)), min(_BLOCK, len(left)))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[left][:, left]))
        solution = inverse @ cross[left]
        gone = _eliminate(inverse, solution @ solution.T, count)
        leaving.append(left[gone])
        stays = torch.ones(len(left), dtype=torch.bool, device=gram.device)
        stays[gone] = False
        left = left[stays]
    return torch.cat(leaving).flip(0)


def _eliminate(
    inverse: Float64[Tensor, "m m"], energy: Float64[Tensor, "m m"], count: int
) -> Int64[Tensor, " n"]:
    """The first columns to leave; `inverse` = H⁻¹ and `energy` = UᵀU are overwritten.

    Removing s takes p pᵀ from H⁻¹, where p = (H⁻¹)_:s / √(H⁻¹)_ss, and v pᵀ from U, where
    v = U_:s / √(H⁻¹)_ss; hence r pᵀ + p rᵀ from UᵀU, where r = Uᵀv - ‖v‖² p / 2.
    """
    m = len(inverse)
    denominators, numerators = inverse.diagonal().clone(), energy.diagonal().clone()
    left = torch.ones(m, dtype=torch.bool, device=inverse.device)
    tiny = torch.finfo(torch.float64).tiny
    gone = torch.empty(count, dtype=torch.int64, device=inverse.device)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        p, r = inverse.new_zeros(m, size), inverse.new_zeros(m, size)
        for j in range(size):
            costs = torch.where(left, numerators / denominators.clamp(min=tiny), torch.inf)
            s = costs.argmin().reshape(1)
            ps, rs = p[s, :j].squeeze(0), r[s, :j].squeeze(0)
            column = inverse[s].squeeze(0) - p[:, :j] @ ps
            products = energy[s].squeeze(0) - r[:, :j] @ ps - p[:, :j] @ rs
            root = column[s].clamp(min=tiny).sqrt()
            p[:, j] = column / root
            r[:, j] = products / root - (0.5 * products[s] / root.square()) * p[:, j]
            denominators -= p[:, j].square()
            numerators -= 2.0 * p[:, j] * r[:, j]
            left[s] = False
            gone[start + j] = s[0]
        inverse.addmm_(p, p.T, alpha=-1.0)
        energy.addmm_(r, p.T, alpha=-1.0).addmm_(p, r.T, alpha=-1.0)
    return gone
