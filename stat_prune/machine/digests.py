"""Digests of tensors, by which a run that was broken off knows what it was of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Add name, shape, dtype and values of a tensor to a digest of hashlib."""
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
