from __future__ import annotations

import itertools

import pytest
import scipy.linalg
import torch

from stat_prune.linalg import NumericalWarning, block_pivoting
from tests.linalg.matrices import decaying_matrix


def errors(
    a: torch.Tensor, w: torch.Tensor, groups: tuple[int, ...], size: int
) -> tuple[float, float]:
    """‖E Wᵀ‖² and ‖E‖² for the dense least-squares residual E of keeping some groups."""
    columns = [g * size + i for g in groups for i in range(size)]
    kept = a[:, columns].numpy()
    left = a
    if columns:
        left = a - torch.from_numpy(kept @ scipy.linalg.lstsq(kept, a.numpy())[0])
    return float((left @ w.T).square().sum()), float(left.square().sum())


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    a = decaying_matrix(200, 24, seed=3, smallest=1e-2)
    w = torch.randn(10, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return a, w * torch.linspace(0.2, 2, 24)


@pytest.mark.parametrize(
    "options",
    [{}, {"criterion": "gain"}, {"direction": "backward"}],
    ids=["energy", "gain", "back"],
)
def test_curves_equal_dense_least_squares(
    problem: tuple[torch.Tensor, torch.Tensor], options: dict[str, str]
) -> None:
    a, w = problem
    result = block_pivoting(a.T @ a, w, 4, **options)
    assert sorted(result.order.tolist()) == list(range(6))
    for k in range(7):
        output, activation = errors(a, w, tuple(result.order[:k].tolist()), 4)
        assert float(result.residual_curve[k]) == pytest.approx(output, rel=1e-8, abs=1e-12)
        assert float(result.activation_curve[k]) == pytest.approx(activation, rel=1e-8, abs=1e-12)


def test_gain_takes_the_group_that_lowers_the_error_most(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    a, w = problem
    order = block_pivoting(a.T @ a, w, 4, criterion="gain").order.tolist()
    kept: tuple[int, ...] = ()
    for group in order:
        rest = [g for g in range(6) if g not in kept]
        assert group == min(rest, key=lambda g: errors(a, w, (*kept, g), 4)[0])
        kept = (*kept, group)


def test_energy_takes_the_group_whose_residual_is_largest_through_the_weight(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    a, w = problem
    order = block_pivoting(a.T @ a, w, 4).order.tolist()
    left = a
    for step, group in enumerate(order):
        columns = [g * 4 + i for g in order[:step] for i in range(4)]
        if columns:
            kept = a[:, columns].numpy()
            left = a - torch.from_numpy(kept @ scipy.linalg.lstsq(kept, a.numpy())[0])
        energy = [
            float((left[:, 4 * g : 4 * g + 4] @ w[:, 4 * g : 4 * g + 4].T).square().sum())
            for g in range(6)
        ]
        assert energy[group] == pytest.approx(max(energy), rel=1e-8, abs=1e-12)


def test_backward_removes_the_group_that_raises_the_error_least(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    a, w = problem
    order = block_pivoting(a.T @ a, w, 4, direction="backward").order.tolist()
    for k in range(1, 7):
        kept = order[:k]
        costs = {g: errors(a, w, tuple(other for other in kept if other != g), 4)[0] for g in kept}
        assert kept[-1] == min(costs, key=lambda g: costs[g])


def test_groups_of_one_are_weighted_pivoted_cholesky(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    a, w = problem
    order = block_pivoting(a.T @ a, w, 1).order
    reference = scipy.linalg.qr((a * w.norm(dim=0)).numpy(), mode="r", pivoting=True)[1]
    assert order.tolist() == reference.tolist()


def test_without_a_weight_the_activations_themselves_count(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    a, _ = problem
    result = block_pivoting(a.T @ a, None, 6)
    torch.testing.assert_close(result.residual_curve, result.activation_curve)


@pytest.mark.parametrize("options", [{}, {"criterion": "gain"}, {"direction": "backward"}])
@pytest.mark.filterwarnings("ignore::stat_prune.linalg.NumericalWarning")
def test_rank_deficient_groups_give_no_nan(options: dict[str, str]) -> None:
    a = decaying_matrix(50, 8, seed=0, smallest=0.1)
    # Groups of four: distinct; the same again; half zero; all zero.
    a = torch.cat([a, a[:, :4], a[:, :2], torch.zeros(50, 6, dtype=torch.float64)], dim=1)
    w = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = block_pivoting(a.T @ a, w, 4, **options)
    assert sorted(result.order.tolist()) == list(range(5))
    for curve in (result.residual_curve, result.activation_curve):
        assert bool(torch.isfinite(curve).all())
        assert float(curve[2]) <= 1e-12 * float(curve[0])
    assert set(result.order[:2].tolist()) <= {0, 1, 2}


def test_backward_reports_the_ridge_it_needed() -> None:
    a = decaying_matrix(6, 8, seed=0)
    with pytest.warns(NumericalWarning, match=r"8 columns is rank-deficient.*ridge of \d"):
        block_pivoting(a.T @ a, None, 2, direction="backward")


def test_greedy_orders_are_close_to_the_best_pair(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    a, w = problem
    best = min(errors(a, w, pair, 4)[0] for pair in itertools.combinations(range(6), 2))
    for options in ({"criterion": "gain"}, {"direction": "backward"}):
        assert float(block_pivoting(a.T @ a, w, 4, **options).residual_curve[2]) <= 1.5 * best


def test_bad_options_are_named() -> None:
    gram = torch.eye(6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"divisor of the number of channels \(6\), got 4"):
        block_pivoting(gram, None, 4)
    with pytest.raises(ValueError, match="one of energy, gain; got 'norm'"):
        block_pivoting(gram, None, 2, criterion="norm")
    with pytest.raises(ValueError, match="one of forward, backward; got 'up'"):
        block_pivoting(gram, None, 2, direction="up")
    with pytest.raises(ValueError, match="one column a channel"):
        block_pivoting(gram, torch.ones(2, 5), 2)
