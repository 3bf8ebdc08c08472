from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.linalg import spectral_norm
from tests.linalg.matrices import decaying_matrix


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 60),
    m=st.integers(1, 60),
    smallest=st.sampled_from([1e-6, 0.5, 0.999]),
    scale=st.sampled_from([1e-200, 1.0, 1e200]),
    accuracy=st.sampled_from([0.5, 0.05, 0.01]),
    seed=st.integers(0, 100),
)
def test_the_bounds_enclose_the_norm_and_are_as_close_as_asked(
    n: int, m: int, smallest: float, scale: float, accuracy: float, seed: int
) -> None:
    a = decaying_matrix(n, m, seed=seed, smallest=smallest)
    exact = float(np.linalg.norm(a.numpy(), 2)) * scale
    lower, upper = spectral_norm(a * scale, accuracy=accuracy, seed=seed)
    assert lower <= exact * (1 + 1e-12)
    assert upper >= exact
    assert upper <= lower * (1 + accuracy) * (1 + 1e-12)


def test_the_norm_of_zero_is_zero() -> None:
    assert spectral_norm(torch.zeros(3, 4)) == (0.0, 0.0)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="`accuracy` must be finite and greater than 0, got 0.0"):
        spectral_norm(torch.ones(2, 2), accuracy=0.0)
    with pytest.raises(ValueError, match=r"non-finite entries, the first at \(1, 0\)"):
        spectral_norm(torch.tensor([[1.0], [float("nan")]]))
