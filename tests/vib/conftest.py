"""Inputs that all tests of the second stage share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def inputs() -> dict[str, torch.Tensor]:
    """Held-out sequences of one length."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 64, (4, 11), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
