"""Matrices with known singular values."""

from __future__ import annotations

import torch
from torch import Tensor


def decaying_matrix(n: int, m: int, *, seed: int, smallest: float = 1e-3) -> Tensor:
    """A matrix with geometrically falling singular values, float64."""
    generator = torch.Generator().manual_seed(seed)
    k = min(n, m)
    left = torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(m, k, dtype=torch.float64, generator=generator)).Q
    values = smallest ** (torch.arange(k, dtype=torch.float64) / max(1, k - 1))
    return left * values @ right.T
