from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.linalg import TSQR, Moments, interpolative_decomposition
from tests.linalg.matrices import decaying_matrix


def kahan(n: int, c: float = 0.285) -> torch.Tensor:
    """Kahan's matrix, perturbed so that rounding does not break ties between its columns."""
    upper = torch.eye(n, dtype=torch.float64)
    upper -= c * torch.triu(torch.ones(n, n, dtype=torch.float64), 1)
    upper *= ((1 - c**2) ** 0.5) ** torch.arange(n, dtype=torch.float64)[:, None]
    upper.diagonal().add_(torch.arange(n, 0, -1) * 1e3 * torch.finfo(torch.float64).eps)
    return upper


def assert_strong(a: torch.Tensor, k: int, bound: float, source: object = None) -> None:
    """The bounds of Gu and Eisenstat (1996), theorem 3.2, at rank k."""
    result = interpolative_decomposition(
        a if source is None else source, rank=k, pivoting="strong", bound=bound
    )
    m, values = a.shape[1], torch.linalg.svdvals(a)
    growth = (1 + bound**2 * k * (m - k)) ** 0.5
    assert float(result.interpolation.abs().max()) <= bound * (1 + 1e-8)
    kept = torch.linalg.svdvals(a[:, result.columns])
    assert bool((kept >= values[:k] / growth * (1 - 1e-8)).all())
    left = torch.linalg.svdvals(a - a[:, result.columns] @ result.interpolation)
    rest = values[k:]
    floor = 1e-13 * float(values[0])
    assert bool((left[: len(rest)] <= rest * growth * (1 + 1e-8) + floor).all())


@pytest.mark.parametrize("bound", [1.1, 2.0, 5.0])
@pytest.mark.parametrize("k", [60, 94, 95])
def test_the_bounds_hold_on_kahans_matrix(k: int, bound: float) -> None:
    assert_strong(kahan(96), k, bound)


def test_cpqr_fails_on_kahans_matrix_where_strong_pivoting_does_not() -> None:
    a = kahan(96)
    values = torch.linalg.svdvals(a)
    smallest = {}
    for pivoting in ("cpqr", "strong"):
        result = interpolative_decomposition(a, rank=95, pivoting=pivoting)
        smallest[pivoting] = float(torch.linalg.svdvals(a[:, result.columns])[-1] / values[94])
    assert smallest["cpqr"] < 1e-6
    assert smallest["strong"] > 0.5


@settings(deadline=None, max_examples=30)
@given(
    m=st.integers(2, 20),
    n=st.integers(2, 40),
    share=st.floats(0.1, 0.9),
    bound=st.sampled_from([1.01, 1.5, 2.0]),
    seed=st.integers(0, 1000),
)
def test_the_bounds_hold_on_random_matrices(
    m: int, n: int, share: float, bound: float, seed: int
) -> None:
    a = decaying_matrix(n, m, seed=seed, smallest=1e-2)
    assert_strong(a, max(1, int(share * min(n, m))), bound)


def test_the_bounds_hold_from_streamed_statistics() -> None:
    a = decaying_matrix(200, 30, seed=0)
    assert_strong(a, 15, 1.05, Moments(30).update(a))
    assert_strong(a, 15, 1.05, TSQR(30).update(a))


def test_swaps_happen_where_the_bound_demands_them() -> None:
    a = kahan(30)
    loose = interpolative_decomposition(a, rank=20)
    assert float(loose.interpolation.abs().max()) > 2.0
    tight = interpolative_decomposition(a, rank=20, pivoting="strong", bound=2.0)
    assert set(tight.columns.tolist()) != set(loose.columns.tolist())


def test_the_bound_holds_for_weighted_columns() -> None:
    a = decaying_matrix(200, 30, seed=0)
    w = torch.logspace(-1, 1, 30, dtype=torch.float64)
    result = interpolative_decomposition(
        a, rank=12, pivoting="strong", bound=1.05, column_weights=w
    )
    scaled = result.interpolation * w / w[result.columns][:, None]
    assert float(scaled.abs().max()) <= 1.05 * (1 + 1e-8)
