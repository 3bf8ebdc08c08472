from __future__ import annotations

import pytest
import torch

from stat_prune.linalg import NumericalWarning, backward_elimination, block_pivoting
from tests.linalg.matrices import decaying_matrix
from tests.linalg.test_blocks import errors


def problem(m: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    a = decaying_matrix(5 * m, m, seed=seed, smallest=1e-2)
    w = torch.randn(7, m, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return a, w * torch.linspace(0.2, 2, m)


def test_each_column_that_leaves_raises_the_error_least() -> None:
    a, w = problem(18)
    order = backward_elimination(a.T @ a, w).tolist()
    assert sorted(order) == list(range(18))
    for k in range(1, 19):
        kept = order[:k]
        costs = {j: errors(a, w, tuple(i for i in kept if i != j), 1)[0] for j in kept}
        assert kept[-1] == min(costs, key=lambda j: costs[j])


def test_the_order_is_that_of_blocks_of_one_column_over_many_rounds() -> None:
    a, w = problem(150)
    plain = block_pivoting(a.T @ a, w, 1, direction="backward").order
    assert backward_elimination(a.T @ a, w).tolist() == plain.tolist()


def test_scaling_a_column_against_its_weight_changes_nothing() -> None:
    a, w = problem(30)
    scale = torch.logspace(-6, 6, 30, dtype=torch.float64)
    scaled = a * scale
    order = backward_elimination(scaled.T @ scaled, w / scale)
    assert order.tolist() == backward_elimination(a.T @ a, w).tolist()


def test_what_others_span_leaves_first() -> None:
    a, w = problem(90)
    # Ten columns are sums of the others, three are zero.
    generator = torch.Generator().manual_seed(0)
    a[:, 77:87] = a[:, :77] @ torch.randn(77, 10, dtype=torch.float64, generator=generator)
    a[:, 87:] = 0.0
    with pytest.warns(NumericalWarning, match=r"90 columns is rank-deficient.*ridge of \d"):
        order = backward_elimination(a.T @ a, w).tolist()
    assert sorted(order) == list(range(90))
    full = errors(a, w, (), 1)[0]
    assert errors(a, w, tuple(order[:77]), 1)[0] <= 1e-10 * full
    assert errors(a, w, tuple(order[:60]), 1)[0] > 1e-10 * full
