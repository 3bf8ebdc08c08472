from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stat_prune.linalg import Moments, pivoted_cholesky, randomly_pivoted_cholesky
from stat_prune.linalg.pivoting.blocked import blocked_cholesky
from tests.linalg.matrices import decaying_matrix


def residual(a: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A minus its projection onto some of its columns, by LAPACK's least squares."""
    kept = a[:, columns].numpy()
    if not kept.shape[1]:
        return a
    solution = scipy.linalg.lstsq(kept, a.numpy(), lapack_driver="gelsd")[0]
    return a - torch.from_numpy(kept @ solution)


def test_pivots_are_those_of_lapacks_column_pivoted_qr(decaying: torch.Tensor) -> None:
    factor = pivoted_cholesky(decaying.T @ decaying)
    order = scipy.linalg.qr(decaying.numpy(), mode="r", pivoting=True)[1]
    assert factor.rank == 40
    np.testing.assert_array_equal(factor.order.numpy(), order)


def test_weighted_pivots_are_those_of_the_scaled_matrix(decaying: torch.Tensor) -> None:
    weights = torch.linspace(0.2, 3.0, 40, dtype=torch.float64).flip(0)
    gram = decaying.T @ decaying
    factor = pivoted_cholesky(gram, column_weights=weights)
    order = scipy.linalg.qr((decaying * weights).numpy(), mode="r", pivoting=True)[1]
    np.testing.assert_array_equal(factor.order.numpy(), order)
    torch.testing.assert_close(factor.factor @ factor.factor.T, gram, rtol=0.0, atol=1e-14)


def test_the_factor_is_triangular_in_pivot_order_and_in_the_order_of_the_columns(
    decaying: torch.Tensor,
) -> None:
    gram = decaying.T @ decaying
    factor = pivoted_cholesky(gram)
    torch.testing.assert_close(factor.factor @ factor.factor.T, gram, rtol=0.0, atol=1e-14)
    triangle = factor.factor[factor.order]
    assert torch.equal(triangle, triangle.tril())


def test_columns_of_weight_zero_come_last_and_are_still_interpolated(
    decaying: torch.Tensor,
) -> None:
    weights = torch.ones(40, dtype=torch.float64)
    weights[[3, 17]] = 0.0
    gram = decaying.T @ decaying
    factor = pivoted_cholesky(gram, column_weights=weights)
    assert sorted(factor.order[-2:].tolist()) == [3, 17]
    assert factor.rank == 38
    best = residual(decaying, factor.order[:20])
    got = decaying - decaying[:, factor.order[:20]] @ factor.interpolation(20)
    torch.testing.assert_close(got, best, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("max_rank", [None, 15])
def test_residual_curves_equal_dense_least_squares(
    decaying: torch.Tensor, weighted: bool, max_rank: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(12, 40, dtype=torch.float64, generator=generator)
    weights = w.norm(dim=0) if weighted else None
    factor = pivoted_cholesky(decaying.T @ decaying, column_weights=weights, max_rank=max_rank)
    activation, output = factor.residual_curve(), factor.residual_curve(w)
    assert len(activation) == len(output) == factor.rank + 1
    for k in range(0, factor.rank + 1, 5):
        left = residual(decaying, factor.order[:k])
        reference = float(left.square().sum()), float((left @ w.T).square().sum())
        assert float(activation[k]) == pytest.approx(reference[0], rel=1e-6, abs=1e-14)
        assert float(output[k]) == pytest.approx(reference[1], rel=1e-6, abs=1e-13)


def test_one_factor_interpolates_at_every_rank(decaying: torch.Tensor) -> None:
    factor = pivoted_cholesky(decaying.T @ decaying)
    for k in (0, 1, 13, 39, 40):
        columns = factor.order[:k]
        t = factor.interpolation(k)
        assert torch.equal(t[:, columns], torch.eye(k, dtype=torch.float64))
        torch.testing.assert_close(
            decaying - decaying[:, columns] @ t, residual(decaying, columns), rtol=0.0, atol=1e-9
        )


def test_columns_kept_beyond_the_numerical_rank_stand_for_themselves() -> None:
    a = decaying_matrix(50, 4, seed=0) @ decaying_matrix(4, 9, seed=1)
    factor = pivoted_cholesky(a.T @ a)
    assert factor.rank == 4
    t = factor.interpolation(6)
    assert torch.equal(t[4:].abs().sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(a[:, factor.order[:6]] @ t, a, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("rank", [None, 50, 64, 130])
def test_the_blocked_algorithm_agrees_with_lapack(rank: int | None) -> None:
    a = decaying_matrix(400, 150, seed=2, smallest=1e-4)
    gram = a.T @ a
    limit = 150 if rank is None else rank
    threshold = 150 * 2.2e-16 * float(gram.diagonal().max())
    factor, order = blocked_cholesky(gram.clone(), threshold, limit)
    reference = pivoted_cholesky(gram, max_rank=rank)
    assert torch.equal(order[:limit], reference.order[:limit])
    torch.testing.assert_close(factor, reference.factor, rtol=1e-6, atol=1e-12)


def test_the_blocked_algorithm_finds_the_rank_that_lapack_finds() -> None:
    left = decaying_matrix(300, 70, seed=0, smallest=0.1)
    a = left @ decaying_matrix(70, 200, seed=1, smallest=0.1)
    gram = a.T @ a
    threshold = 200 * 2.2e-16 * float(gram.diagonal().max())
    factor, _ = blocked_cholesky(gram.clone(), threshold, 200)
    assert factor.shape[1] == pivoted_cholesky(gram).rank == 70
    torch.testing.assert_close(factor @ factor.T, gram, rtol=0.0, atol=1e-12 * float(gram.max()))


def test_a_zero_matrix_has_rank_zero_and_no_error() -> None:
    zero = torch.zeros(5, 5, dtype=torch.float64)
    for factorise in (pivoted_cholesky, randomly_pivoted_cholesky):
        factor = factorise(zero)
        assert factor.rank == 0
        assert torch.equal(factor.residual_curve(), torch.zeros(1, dtype=torch.float64))
        assert torch.equal(factor.interpolation(2).sum(1), torch.ones(2, dtype=torch.float64))
    assert blocked_cholesky(zero.clone(), 0.0, 5)[0].shape == (5, 0)


def test_overwriting_gives_the_same_factor_in_the_memory_of_the_gram_matrix(
    decaying: torch.Tensor,
) -> None:
    gram = decaying.T @ decaying
    kept = pivoted_cholesky(gram.clone())
    taken = pivoted_cholesky(gram, overwrite=True)
    assert torch.equal(kept.factor, taken.factor)
    assert taken.factor.data_ptr() == gram.data_ptr()
    torch.testing.assert_close(kept.residual_curve(), taken.residual_curve())


def test_the_gram_matrix_survives_unless_told_otherwise(decaying: torch.Tensor) -> None:
    gram = decaying.T @ decaying
    before = gram.clone()
    pivoted_cholesky(gram, column_weights=torch.linspace(1, 2, 40, dtype=torch.float64))
    randomly_pivoted_cholesky(gram)
    assert torch.equal(gram, before)


def test_a_tolerance_stops_at_the_pivot_that_falls_below_it() -> None:
    gram = torch.diag(torch.tensor([1.0, 1e-3, 1e-6, 1e-9], dtype=torch.float64))
    assert pivoted_cholesky(gram, tolerance=1e-5).rank == 2
    assert pivoted_cholesky(gram).rank == 4


def test_random_pivots_are_drawn_in_proportion_to_the_diagonal() -> None:
    gram = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    first = torch.tensor(
        [int(randomly_pivoted_cholesky(gram, seed=s).order[0]) for s in range(800)]
    )
    share = torch.bincount(first, minlength=3) / 800
    # Three standard errors of a share near a half are 0.053.
    torch.testing.assert_close(share, torch.tensor([0.125, 0.25, 0.625]), rtol=0.0, atol=0.053)


def test_random_pivots_meet_their_bound_in_the_mean() -> None:
    a = decaying_matrix(200, 60, seed=5, smallest=1e-3)
    gram = a.T @ a
    values = torch.linalg.eigvalsh(gram).flip(0)
    best = float(values[5:].sum())
    # k = r/eps + r log(1/(eps eta)) pivots for r = 5, eps = 1.
    k = round(5 + 5 * float(torch.log(values.sum() / best)))
    errors = [float(randomly_pivoted_cholesky(gram, seed=s).residual_curve()[k]) for s in range(40)]
    assert sum(errors) / 40 <= 2 * best


def test_random_pivots_obey_the_seed_and_leave_the_global_generator_alone() -> None:
    a = decaying_matrix(80, 30, seed=1)
    state = torch.get_rng_state()
    orders = [randomly_pivoted_cholesky(a.T @ a, seed=s).order for s in (4, 4, 5)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(torch.get_rng_state(), state)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 30),
    m=st.integers(1, 20),
    rank=st.integers(1, 20),
    zeros=st.integers(0, 3),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    seed=st.integers(0, 1000),
)
# Rounding leaves a tenth pivot of more than m times the epsilon.
@example(n=9, m=11, rank=12, zeros=0, scale=1e-30, seed=738)
def test_any_gram_matrix_is_factored_without_nan(
    n: int, m: int, rank: int, zeros: int, scale: float, seed: int
) -> None:
    a = decaying_matrix(n, rank, seed=seed) @ decaying_matrix(rank, m, seed=seed + 1) * scale
    a[:, :zeros] = 0.0
    gram = Moments(m).update(a).gram
    for factorise in (pivoted_cholesky, randomly_pivoted_cholesky):
        factor = factorise(gram)
        assert sorted(factor.order.tolist()) == list(range(m))
        assert factor.rank <= min(n, m, rank)
        curve = factor.residual_curve()
        assert bool((curve[1:] <= curve[:-1]).all()) and bool(torch.isfinite(curve).all())
        for k in {0, factor.rank, m}:
            t = factor.interpolation(k)
            assert bool(torch.isfinite(t).all())
            left = (a - a[:, factor.order[:k]] @ t).square().sum()
            expected = curve[min(k, factor.rank)]
            assert abs(float(left - expected)) <= 1e-12 * float(curve[0])


def test_bad_gram_matrices_are_named() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    with pytest.raises(TypeError, match="must be float64, got torch.float32"):
        pivoted_cholesky(eye.float())
    with pytest.raises(ValueError, match="must be square"):
        pivoted_cholesky(eye[:2])
    with pytest.raises(ValueError, match="diagonal is -1.0 at channel 1"):
        pivoted_cholesky(torch.diag(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"the first at \(0, 2\)"):
        pivoted_cholesky(eye + torch.tensor([[0, 0, float("inf")]] + [[0, 0, 0]] * 2))
    with pytest.raises(ValueError, match=r"`max_rank` must lie in 0..3, got 4"):
        pivoted_cholesky(eye, max_rank=4)
    with pytest.raises(ValueError, match="`tolerance` must be finite and greater than 0, got -1"):
        pivoted_cholesky(eye, tolerance=-1.0)
    with pytest.raises(ValueError, match="one number a column"):
        pivoted_cholesky(eye, column_weights=torch.ones(2))
    with pytest.raises(ValueError, match="non-negative, got -1.0 at column 1"):
        pivoted_cholesky(eye, column_weights=torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="one column a channel"):
        pivoted_cholesky(eye).residual_curve(torch.ones(2, 4))
