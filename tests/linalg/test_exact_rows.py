from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stat_prune.linalg import ExactRows, exact_rows, low_rank
from stat_prune.linalg.exact_rows import WeightedTable
from tests.linalg.matrices import decaying_matrix

#: `exact_rows` of the package is the function.
implementation = importlib.import_module("stat_prune.linalg.exact_rows")


def weighted(seed: int, n: int = 60, m: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """A table with a mean, weights of its rows over three decades, and a metric."""
    generator = torch.Generator().manual_seed(seed)
    table = decaying_matrix(n, m, seed=seed, smallest=0.05) + 0.1
    weights = 10 ** (3 * torch.rand(n, dtype=torch.float64, generator=generator))
    hidden = torch.randn(3 * m, m, dtype=torch.float64, generator=generator)
    return table, weights, hidden.T @ hidden


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), place=st.integers(0, 6), rank=st.integers(0, 12))
def test_errors_are_those_of_the_best_factors_of_the_other_rows(
    seed: int, place: int, rank: int
) -> None:
    table, weights, metric = weighted(seed)
    found = exact_rows(table, row_weights=weights, metric=metric, most=40)
    others = found.order[found.counts[place] :]
    rows, own = table[others], weights[others]
    # The reference: LAPACK's singular values of these rows alone.
    left = (own.sqrt()[:, None] * (rows - own @ rows / own.sum())).numpy()
    root = scipy.linalg.sqrtm(metric.numpy()).real
    values = scipy.linalg.svdvals(left @ root)
    expected = float(np.sum(values[rank:] ** 2))
    whole = float(found.errors[0, 0])
    assert float(found.errors[place, rank]) == pytest.approx(expected, abs=1e-9 * whole)


def test_factors_of_rows_without_weight_reach_these_errors() -> None:
    table, weights, metric = weighted(3)
    found = exact_rows(table, row_weights=weights, metric=metric, most=16)
    own = weights.index_fill(0, found.order[:8], 0.0)
    factors = low_rank(table, row_weights=own, metric=metric)
    errors = factors.error_curve.square() * factors.energy
    torch.testing.assert_close(errors, found.errors[found.counts.index(8)])


@pytest.mark.parametrize("count", [0, 1, 8, 16])
def test_factors_beside_exact_rows_are_those_of_the_others_alone(count: int) -> None:
    table, weights, metric = weighted(4)
    decomposed = WeightedTable(table, row_weights=weights, metric=metric)
    exact = decomposed.exact_rows(rank=3, most=16).order[:count]
    found = decomposed.beside(exact)
    stay = torch.ones(len(table), dtype=torch.bool).index_fill(0, exact, False)
    alone = low_rank(table[stay], row_weights=weights[stay], metric=metric)
    torch.testing.assert_close(found.mean, alone.mean)
    torch.testing.assert_close(found.error_curve, alone.error_curve, rtol=1e-7, atol=1e-7)
    assert found.energy == pytest.approx(alone.energy)
    product, expected = (
        codes @ basis + mean
        for codes, basis, mean in (one.factors(table, 5) for one in (found, alone))
    )
    torch.testing.assert_close(product, expected)


def test_the_gram_matrix_is_summed_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table, weights, metric = weighted(5)
    decomposed = WeightedTable(table, row_weights=weights, metric=metric)

    def summed_again(*_args: Any, **_options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(implementation, "weighted_gram", summed_again)
    monkeypatch.setattr(implementation, "metric_roots", summed_again)
    for rank in (2, 6):
        decomposed.beside(decomposed.exact_rows(rank, 9).order[:rank])


def test_there_are_no_more_exact_rows_than_may_be() -> None:
    table, weights, _ = weighted(0)
    assert exact_rows(table, row_weights=weights, most=20).counts == [0, 1, 2, 5, 10, 20]
    assert exact_rows(table, row_weights=weights, most=0).counts == [0]
    assert exact_rows(table, row_weights=weights).counts[-1] == 59


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), room=st.floats(1, 700), multiple=st.integers(1, 4))
def test_no_other_shape_within_the_room_leaves_less(seed: int, room: float, multiple: int) -> None:
    table, weights, _ = weighted(seed)
    found = exact_rows(table, row_weights=weights, most=20)
    shape = found.within(room, per_rank=72.0, per_row=13.0, multiple=multiple)
    fitting = [
        float(found.errors[place, rank])
        for place, count in enumerate(found.counts)
        for rank in range(1, 13)
        if 72 * rank + (13 - rank) * count <= room and (rank < multiple or rank % multiple == 0)
    ]
    if shape is None:
        assert not fitting
        return
    rank, count = shape
    assert 72 * rank + (13 - rank) * count <= room
    assert count <= 20
    own = weights.index_fill(0, found.order[:count], 0.0)
    factors = low_rank(table, row_weights=own)
    reached = float(factors.error_curve[rank]) ** 2 * factors.energy
    assert reached <= min(fitting) + 1e-9 * float(found.errors[0, 0])


def test_rows_are_left_in_the_factors_where_none_stands_out() -> None:
    table = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = table @ torch.ones(1, 12, dtype=torch.float64)
    assert exact_rows(table).within(300.0, per_rank=212.0, per_row=12.0) == (1, 0)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="row_weights"):
        exact_rows(torch.ones(4, 3), row_weights=torch.ones(3))
    with pytest.raises(ValueError, match="metric"):
        exact_rows(torch.ones(4, 3), metric=torch.eye(2, dtype=torch.float64))
    assert isinstance(exact_rows(torch.ones(4, 3)), ExactRows)
