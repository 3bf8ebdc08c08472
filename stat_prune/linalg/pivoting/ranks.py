"""How many columns of a pivoted factor meet a tolerance."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float64
from torch import Tensor

from stat_prune.linalg.exceptions import NumericalWarning
from stat_prune.linalg.pivoting.factor import PivotedCholesky
from stat_prune.linalg.pivoting.norms import spectral_norm


def rank_within(factor: PivotedCholesky, tolerance: float, norm: str, seed: int) -> int:
    """The smallest rank k with ‖A - A_J T‖ <= `tolerance` ‖A‖ in "fro" or "spectral" norm.

    The spectral norm of the residual is that of F[:, k:], and falls with k: bisection needs some
    log2(m) estimates, each by its certain or nearly certain bound, whichever is on the safe side.
    """
    curve = relative_errors(factor.residual_curve())
    if norm == "fro":
        enough = (curve <= tolerance).nonzero()
        low = int(enough[0]) if len(enough) else len(curve)
    else:
        allowed = tolerance * spectral_norm(factor.factor, seed=seed)[0]
        low, high = 0, len(curve)
        while low < high:
            middle = (low + high) // 2
            if _spectral_error(factor, middle, seed) <= allowed:
                high = middle
            else:
                low = middle + 1
    if low < len(curve):
        return low
    warnings.warn(
        f"A tolerance of {tolerance:.1e} lies below what this factorisation resolves: at the "
        f"numerical rank {factor.rank} the relative error is {float(curve[-1]):.1e}. Decompose "
        "the matrix itself or a TSQR by `pivoting='cpqr'`.",
        NumericalWarning,
        stacklevel=4,
    )
    return factor.rank


def _spectral_error(factor: PivotedCholesky, rank: int, seed: int) -> float:
    """Upper bound of ‖A - A_J T‖₂ but for the failure probability of `spectral_norm`."""
    beyond: float = float(factor.remainder.sum()) ** 0.5
    if rank == factor.rank:
        return beyond
    return spectral_norm(factor.factor[:, rank:], seed=seed)[1] + beyond


def relative_errors(squared: Float64[Tensor, " curve"]) -> Float64[Tensor, " curve"]:
    """Relative errors from squared ones; zero where there was nothing to lose."""
    return (squared / squared[0].clamp(min=torch.finfo(squared.dtype).tiny)).sqrt()
