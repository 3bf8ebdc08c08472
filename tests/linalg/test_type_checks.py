from __future__ import annotations

import jaxtyping
import pytest
import torch

from stat_prune.linalg import PivotedCholesky


def test_shapes_in_annotations_are_checked_under_pytest() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        PivotedCholesky(
            order=torch.arange(3),
            factor=torch.zeros(4, 2, dtype=torch.float64),
            rank=2,
            remainder=torch.zeros(3, dtype=torch.float64),
        )
