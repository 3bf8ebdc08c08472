"""Shapes and dtypes in the annotations of stat_prune.linalg are checked under pytest."""

from __future__ import annotations

import sys

from jaxtyping import install_import_hook

# Another test package may have imported it already, unchecked; then these tests get a copy.
for name in [name for name in sys.modules if name.startswith("stat_prune.linalg")]:
    del sys.modules[name]
install_import_hook("stat_prune.linalg", "beartype.beartype")

import pytest  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.linalg.matrices import decaying_matrix  # noqa: E402


@pytest.fixture
def decaying() -> Tensor:
    """A 300 x 40 float64 matrix with singular values from 1 down to 1e-3 and a mean."""
    return decaying_matrix(300, 40, seed=1) + 0.1
