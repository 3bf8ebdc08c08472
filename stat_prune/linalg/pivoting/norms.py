"""The spectral norm, between a bound that is certain and one that is nearly so."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from stat_prune.linalg.checks import check_finite, check_matrix, check_number, check_seed

_PROBES = 16


def spectral_norm(
    matrix: Tensor,
    *,
    accuracy: float = 0.05,
    failure_probability: float = 1e-10,
    seed: int = 0,
) -> tuple[float, float]:
    """Bounds of ‖A‖₂ by power iteration on AᵀA from random starts.

    From a start x uniform on the unit sphere, ξ = (xᵀMᵠx)^(1/q) with M = AᵀA satisfies ξ <= λ,
    and λ <= θ ξ but for a probability of 0.8 sqrt(m) θ^(-q/2), λ being the largest eigenvalue
    [1]_: λ^q (vᵀx)² <= xᵀMᵠx for its eigenvector v, and |vᵀx| is at most t with probability at
    most t sqrt(2m/π). Sixteen independent starts all fail with that probability to the 16.

    Parameters
    ----------
    matrix : Tensor of shape (n, m)
        Any floating-point dtype; computed in float64 on its device.
    accuracy : float
        The upper bound is 1 + `accuracy` times the lower one, or less.
    failure_probability : float
        Probability, over the seed, with which the upper bound may fail.
    seed : int
        Determines the starts.

    Returns
    -------
    lower : float
        At most ‖A‖₂, up to rounding.
    upper : float
        At least ‖A‖₂, but for `failure_probability`.

    Raises
    ------
    TypeError, ValueError
        If `matrix` is malformed or not finite, or an option is out of range.

    References
    ----------
    .. [1] Dixon (1983), Estimating extremal eigenvalues and condition numbers of matrices, SIAM
       J. Numer. Anal. 20(4).

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import spectral_norm
    >>> lower, upper = spectral_norm(torch.diag(torch.tensor([3.0, 1.0])))
    >>> lower <= 3.0 * (1 + 1e-12) and upper >= 3.0
    True
    """
    check_finite(check_matrix(matrix, "matrix"), "matrix")
    check_number(accuracy, "accuracy", strict=True)
    check_number(failure_probability, "failure_probability", strict=True)
    size = float(matrix.abs().max())
    if size == 0.0:
        return 0.0, 0.0
    work = matrix.to(torch.float64) / size
    logarithm = _log_power_mean(work, _steps(work.shape[1], accuracy, failure_probability), seed)
    lower = size * math.exp(logarithm / 2.0)
    return lower, lower * (1.0 + accuracy)


def _steps(size: int, accuracy: float, failure_probability: float) -> int:
    """The q for θ = (1 + accuracy)²: 16 log(0.8 sqrt(m) θ^(-q/2)) <= log(failure)"""
    needed = math.log(0.8 * math.sqrt(size)) - math.log(failure_probability) / _PROBES
    return max(2, math.ceil(needed / math.log1p(accuracy)))


def _log_power_mean(matrix: Float64[Tensor, "n m"], steps: int, seed: int) -> float:
    """The largest log (xᵀMᵠx)^(1/q) over the starts; M = AᵀA is applied q/2 times, q even."""
    generator = torch.Generator(device=matrix.device).manual_seed(check_seed(seed))
    x = torch.randn(
        matrix.shape[1], _PROBES, dtype=matrix.dtype, device=matrix.device, generator=generator
    )
    x /= torch.linalg.vector_norm(x, dim=0)
    growth = x.new_zeros(_PROBES)
    halves = math.ceil(steps / 2)
    for _ in range(halves):
        x = matrix.T @ (matrix @ x)
        norms = torch.linalg.vector_norm(x, dim=0).clamp(min=torch.finfo(x.dtype).tiny)
        growth += norms.log()
        x /= norms
    return float(growth.max() / halves)
