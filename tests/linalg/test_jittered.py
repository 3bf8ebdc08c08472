from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.linalg import NonFiniteError, NumericalWarning, jittered_cholesky


def gram_of(rank: int, m: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = scale * torch.randn(rank, m, generator=generator, dtype=torch.float64)
    return rows.T @ rows


@settings(deadline=None, max_examples=60)
@given(
    rank=st.integers(0, 40),
    m=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    exponent=st.integers(-100, 100),
)
def test_a_positive_semidefinite_matrix_has_a_factor_that_gives_it_back(
    rank: int, m: int, seed: int, exponent: int
) -> None:
    gram = gram_of(rank, m, seed, 10.0**exponent)
    before = gram.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factor = jittered_cholesky(gram)
    assert torch.equal(gram, before)
    assert torch.equal(factor, factor.tril())
    error = (factor @ factor.T - gram).abs().max()
    assert float(error) <= 1e-9 * max(float(gram.diagonal().mean()), 1e-290)


def test_the_factor_takes_the_memory_of_the_matrix_where_that_is_allowed() -> None:
    gram = gram_of(200, 100)
    before = gram.clone()
    factor = jittered_cholesky(gram, overwrite=True)
    assert factor.data_ptr() == gram.data_ptr()
    torch.testing.assert_close(factor, torch.linalg.cholesky(before))


@pytest.mark.parametrize("size", [1e-6, 1e-8])
def test_a_jitter_that_is_more_than_rounding_is_told_with_its_size(size: float) -> None:
    gram = gram_of(50, 50)
    vector = torch.linalg.eigh(gram).eigenvectors[:, 0]
    lowest = torch.linalg.eigvalsh(gram)[0] + size * gram.diagonal().mean()
    gram -= lowest * torch.outer(vector, vector)  # its least eigenvalue is -size
    with pytest.warns(NumericalWarning, match=r"50 columns .*only with \d\.0e-0\d of the mean"):
        factor = jittered_cholesky(gram)
    error = factor @ factor.T - gram
    assert 0.5 * size <= float(error.diagonal().mean() / gram.diagonal().mean()) <= 11 * size


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [(0, 0), (3, 2)])
def test_what_is_not_finite_is_refused_at_once(value: float, where: tuple[int, int]) -> None:
    gram = gram_of(10, 5)
    gram[where] = gram[where[::-1]] = value
    with pytest.raises(NonFiniteError, match="`gram` has"):
        jittered_cholesky(gram)


@pytest.mark.parametrize(
    "gram",
    [
        torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64),
        torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64),
        -torch.eye(3, dtype=torch.float64),
    ],
    ids=["indefinite", "zero diagonal", "negative"],
)
def test_a_matrix_that_is_no_gram_matrix_is_refused_instead_of_tried_for_ever(
    gram: torch.Tensor,
) -> None:
    with pytest.raises(ValueError, match="positive semi-definite"):
        jittered_cholesky(gram)
