from __future__ import annotations

import pytest
from torch import Tensor

from tests.linalg.matrices import decaying_matrix


@pytest.fixture
def decaying() -> Tensor:
    """A 300 x 40 float64 matrix with singular values from 1 down to 1e-3 and a mean."""
    return decaying_matrix(300, 40, seed=1) + 0.1
