"""Batches for models of `hand_pruned`."""

from __future__ import annotations

import torch
from torch import Tensor


def random_batch(size: int, length: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Token ids and a mask, the last sequence padded by two."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 50, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}
