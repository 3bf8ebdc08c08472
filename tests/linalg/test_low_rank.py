from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stat_prune.linalg import LowRank, low_rank
from tests.linalg.matrices import decaying_matrix

DECOMPOSITIONS = ["svd", "interpolative"]


def weighted(seed: int, n: int = 60, m: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """A table with a mean, weights of its rows over three decades, and a metric."""
    generator = torch.Generator().manual_seed(seed)
    table = decaying_matrix(n, m, seed=seed, smallest=0.05) + 0.1
    weights = 10 ** (3 * torch.rand(n, dtype=torch.float64, generator=generator))
    hidden = torch.randn(3 * m, m, dtype=torch.float64, generator=generator)
    hidden *= torch.linspace(0.2, 3, m, dtype=torch.float64)
    return table, weights, hidden.T @ hidden


def error(table: Tensor, weights: Tensor, metric: Tensor, approximation: Tensor) -> float:
    """‖D(E - Ê)M^½‖_F, from the trace."""
    left = table - approximation
    return float(((left @ metric) * left).sum(dim=1) @ weights) ** 0.5


def approximation(found: LowRank, table: Tensor, rank: int) -> Tensor:
    codes, basis, offset = found.factors(table, rank)
    return codes @ basis + offset


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), rank=st.integers(0, 12), centered=st.booleans())
def test_no_factors_of_a_rank_are_better_than_those_of_the_svd(
    seed: int, rank: int, centered: bool
) -> None:
    table, weights, metric = weighted(seed)
    found = low_rank(table, row_weights=weights, metric=metric, centered=centered)
    mean = (weights @ table / weights.sum()) if centered else torch.zeros(12).double()
    # The reference: LAPACK's singular values of the weighted matrix itself.
    root = torch.from_numpy(scipy.linalg.sqrtm(metric.numpy()).real)
    values = scipy.linalg.svdvals((weights.sqrt()[:, None] * (table - mean) @ root).numpy())
    best = float(np.linalg.norm(values[rank:]))
    reached = error(table, weights, metric, approximation(found, table, rank))
    whole = float(np.linalg.norm(values))
    assert reached == pytest.approx(best, abs=1e-7 * whole)
    assert float(found.error_curve[rank]) == pytest.approx(best / whole, abs=1e-7)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 12), centered=st.booleans())
def test_chosen_columns_are_those_of_the_table_with_least_squares_behind(
    seed: int, rank: int, centered: bool
) -> None:
    table, weights, metric = weighted(seed)
    options: dict[str, Any] = {"row_weights": weights, "metric": metric, "centered": centered}
    found = low_rank(table, decomposition="interpolative", **options)
    codes, basis, offset = found.factors(table, rank)
    columns = [int((table == code[:, None]).all(dim=0).nonzero()) for code in codes.T]
    mean = (weights @ table / weights.sum()) if centered else torch.zeros(12).double()
    left = (weights.sqrt()[:, None] * (table - mean)).numpy()
    reference = scipy.linalg.lstsq(left[:, columns], left)[0]
    assert np.allclose(basis.numpy(), reference, atol=1e-6)
    assert torch.allclose(offset, mean - mean[columns] @ basis, atol=1e-12)
    reached = error(table, weights, metric, codes @ basis + offset)
    whole = error(table, weights, metric, mean.expand_as(table))
    assert float(found.error_curve[rank]) == pytest.approx(reached / whole, abs=1e-7)
    assert reached >= error(
        table, weights, metric, approximation(low_rank(table, **options), table, rank)
    ) - 1e-9 * (whole)


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_a_table_of_low_rank_around_its_mean_loses_nothing(decomposition: str) -> None:
    generator = torch.Generator().manual_seed(0)
    codes, basis = (torch.randn(*s, generator=generator) for s in ((5000, 4), (4, 10)))
    table = codes @ basis + 3.0
    found = low_rank(table, decomposition=decomposition)
    assert torch.allclose(
        approximation(found, table.double(), 4), table.double(), atol=2e-5, rtol=0
    )


def test_the_code_of_each_row_is_the_best_for_it_whatever_its_weight() -> None:
    table, weights, metric = weighted(3)
    found = low_rank(table, row_weights=weights, metric=metric)
    codes, basis, offset = found.factors(table, 5)
    root = torch.from_numpy(scipy.linalg.sqrtm(metric.numpy()).real)
    best = scipy.linalg.lstsq((basis @ root).T.numpy(), ((table - offset) @ root).T.numpy())[0]
    assert np.allclose(codes.T.numpy(), best, atol=1e-8)


def test_a_weight_of_two_counts_a_row_twice() -> None:
    table, _, _ = weighted(4)
    weights = torch.ones(60).double()
    weights[:7] = 2
    once = low_rank(table, row_weights=weights)
    twice = low_rank(torch.cat([table, table[:7]]))
    assert torch.allclose(once.error_curve, twice.error_curve, atol=1e-12)
    assert torch.allclose(approximation(once, table, 6), approximation(twice, table, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_weights": torch.ones(5)}, "one number a row"),
        ({"row_weights": torch.zeros(60)}, "add 1 to counts"),
        ({"row_weights": -torch.ones(60)}, "non-negative"),
        ({"metric": torch.zeros(12, 12).double()}, "positive definite"),
        ({"metric": torch.eye(5).double()}, "12 x 12"),
        ({"decomposition": "qr"}, "svd, interpolative"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    table, _, _ = weighted(0)
    with pytest.raises(ValueError, match=message):
        low_rank(table, **change)


def test_other_widths_and_ranks_are_refused() -> None:
    table, _, _ = weighted(0)
    found = low_rank(table)
    with pytest.raises(ValueError, match="12 columns"):
        found.factors(table[:, :5], 2)
    with pytest.raises(ValueError, match=r"0\.\.12"):
        found.factors(table, 13)
