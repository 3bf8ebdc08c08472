from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from stat_prune.linalg import (
    CountSketch,
    CrossMoments,
    Moments,
    NumericalWarning,
    interpolation_from_gram,
    least_squares_from_moments,
)
from tests.linalg.matrices import decaying_matrix

COLUMNS = torch.tensor([7, 2, 30, 11, 25])
REST = torch.tensor([j for j in range(40) if j not in COLUMNS.tolist()])


def dense_solution(a: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    solution = scipy.linalg.lstsq(a[:, columns].numpy(), a.numpy(), lapack_driver="gelsd")[0]
    return torch.from_numpy(solution)


def test_interpolation_equals_dense_least_squares(decaying: torch.Tensor) -> None:
    t = interpolation_from_gram(decaying.T @ decaying, COLUMNS)
    torch.testing.assert_close(t, dense_solution(decaying, COLUMNS), rtol=1e-8, atol=1e-8)
    assert torch.equal(t[:, COLUMNS], torch.eye(5, dtype=torch.float64))


def test_a_second_pass_over_the_kept_columns_gives_the_same(decaying: torch.Tensor) -> None:
    moments = CrossMoments(5, 35)
    for batch in decaying.split(64):
        moments.update(batch[:, COLUMNS], batch[:, REST])
    gram, cross, _ = moments.normal_equations()
    solution = least_squares_from_moments(gram, cross)
    whole = interpolation_from_gram(Moments(40).update(decaying).gram, COLUMNS)[:, REST]
    torch.testing.assert_close(solution, whole, rtol=1e-9, atol=1e-10)


def test_the_rows_of_a_sketch_give_its_own_least_squares(decaying: torch.Tensor) -> None:
    rows = CountSketch(40, 120).update(decaying).matrix
    solution = least_squares_from_moments(
        rows[:, COLUMNS].T @ rows[:, COLUMNS], rows[:, COLUMNS].T @ rows[:, REST]
    )
    torch.testing.assert_close(
        solution, dense_solution(rows, COLUMNS)[:, REST], rtol=1e-8, atol=1e-8
    )


def test_a_fixed_ridge_is_relative_to_the_squared_norms() -> None:
    x = decaying_matrix(100, 6, seed=0)
    y = decaying_matrix(100, 3, seed=1)
    solution = least_squares_from_moments(x.T @ x, x.T @ y, ridge=0.1)
    norms = x.norm(dim=0).numpy()
    padded = np.concatenate([x.numpy() / norms, np.sqrt(0.1) * np.eye(6)])
    reference = scipy.linalg.lstsq(padded, np.concatenate([y.numpy(), np.zeros((6, 3))]))[0]
    np.testing.assert_allclose(solution.numpy(), reference / norms[:, None], rtol=1e-9)


def test_held_out_rows_choose_a_ridge_that_helps_on_rows_never_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(30, 4, dtype=torch.float64, generator=generator)

    def sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 30, dtype=torch.float64, generator=generator)
        return x, x @ truth + 20 * torch.randn(n, 4, dtype=torch.float64, generator=generator)

    (x, y), (held_x, held_y), (new_x, new_y) = sample(35), sample(35), sample(4000)
    with pytest.warns(NumericalWarning, match="Held-out rows chose a ridge of"):
        chosen = least_squares_from_moments(
            x.T @ x, x.T @ y, holdout=(held_x.T @ held_x, held_x.T @ held_y)
        )
    plain = least_squares_from_moments(x.T @ x + held_x.T @ held_x, x.T @ y + held_x.T @ held_y)
    assert float((new_x @ chosen - new_y).norm()) < 0.97 * float((new_x @ plain - new_y).norm())


def test_the_held_out_ridge_is_the_best_of_its_grid() -> None:
    generator = torch.Generator().manual_seed(3)
    x, held = (torch.randn(25, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    y, held_y = (torch.randn(25, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    with pytest.warns(NumericalWarning) as caught:
        least_squares_from_moments(x.T @ x, x.T @ y, holdout=(held.T @ held, held.T @ held_y))
    reported = float(str(caught[0].message).split("ridge of ")[1].split(" ")[0])

    def error(ridge: float) -> float:
        solution = least_squares_from_moments(x.T @ x, x.T @ y, ridge=ridge)
        return float((held @ solution - held_y).norm())

    grid = [0.0, *(10.0 ** (step / 2) for step in range(-26, 1))]
    assert reported == pytest.approx(min(grid, key=error), rel=0.05)


def test_clean_data_need_no_ridge() -> None:
    x = decaying_matrix(100, 6, seed=0, smallest=0.1)
    y = x @ decaying_matrix(6, 3, seed=1)
    with warnings.catch_warnings():
        # Rounding error may prefer a ridge of its own size.
        warnings.simplefilter("ignore", NumericalWarning)
        solution = least_squares_from_moments(
            x[:50].T @ x[:50], x[:50].T @ y[:50], holdout=(x[50:].T @ x[50:], x[50:].T @ y[50:])
        )
    torch.testing.assert_close(x @ solution, y, rtol=0.0, atol=1e-10)


def test_rank_loss_is_reported_with_figures_and_loses_nothing() -> None:
    a = decaying_matrix(60, 10, seed=0, smallest=0.1)
    a[:, 4] = a[:, 1] - 2.0 * a[:, 3]
    with pytest.warns(NumericalWarning, match="The 4 kept columns have numerical rank 3"):
        t = interpolation_from_gram(a.T @ a, torch.tensor([1, 3, 4, 5]))
    best = dense_solution(a, torch.tensor([1, 3, 4, 5]))
    kept = a[:, [1, 3, 4, 5]]
    torch.testing.assert_close(kept @ t, kept @ best, rtol=0.0, atol=1e-8)


def test_zero_tiny_and_huge_columns_are_solved_alike() -> None:
    a = decaying_matrix(80, 12, seed=0, smallest=0.1)
    scale = torch.ones(12, dtype=torch.float64)
    scale[[1, 6]], scale[[2, 7]] = 1e-30, 1e30
    columns = torch.tensor([0, 1, 2, 3, 4])
    t = interpolation_from_gram((a * scale).T @ (a * scale), columns)
    reference = dense_solution(a, columns) * scale / scale[columns][:, None]
    torch.testing.assert_close(t[:, 5:], reference[:, 5:], rtol=1e-8, atol=0.0)
    a[:, 3] = 0.0
    with pytest.warns(NumericalWarning, match="numerical rank 4"):
        t = interpolation_from_gram(a.T @ a, columns)
    kept = a[:, columns]
    best = kept @ dense_solution(a, columns)
    torch.testing.assert_close(kept @ t, best, rtol=0.0, atol=1e-10)


def test_entries_are_bounded_on_request_and_the_price_is_reported() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 8, dtype=torch.float64, generator=generator)
    a[:, 1] = a[:, 0] + 1e-4 * a[:, 1]
    columns = torch.tensor([0, 1, 2])
    free = interpolation_from_gram(a.T @ a, columns)
    assert float(free.abs().max()) > 100
    with pytest.warns(NumericalWarning, match=r"columns had entries up to .* above max_entry=3"):
        bounded = interpolation_from_gram(a.T @ a, columns, max_entry=3.0)
    assert float(bounded.abs().max()) <= 3.0
    assert torch.equal(bounded[:, columns], torch.eye(3, dtype=torch.float64))
    error, best = (float((a - a[:, columns] @ t).norm()) for t in (bounded, free))
    assert best <= error <= 1.05 * best


def test_columns_that_need_no_bound_are_left_as_they_are(decaying: torch.Tensor) -> None:
    gram = decaying.T @ decaying
    free = interpolation_from_gram(gram, COLUMNS)
    limit = float(free.abs().amax(dim=0).sort().values[30]) * 1.000001
    with pytest.warns(NumericalWarning, match="max_entry"):
        bounded = interpolation_from_gram(gram, COLUMNS, max_entry=limit)
    calm = free.abs().amax(dim=0) <= limit
    assert 0 < int(calm.sum()) < 40
    torch.testing.assert_close(bounded[:, calm], free[:, calm], rtol=1e-12, atol=0.0)


def test_keeping_all_or_nothing_is_exact(decaying: torch.Tensor) -> None:
    gram = decaying.T @ decaying
    everything = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    t = interpolation_from_gram(gram, everything)
    assert torch.equal(decaying[:, everything] @ t, decaying)
    assert interpolation_from_gram(gram, everything[:0]).shape == (0, 40)


def test_bad_arguments_are_named() -> None:
    gram = torch.eye(4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`columns` must lie in 0..3, got 4"):
        interpolation_from_gram(gram, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="more than once"):
        interpolation_from_gram(gram, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="vector of integers"):
        interpolation_from_gram(gram, torch.tensor([1.0]))
    with pytest.raises(ValueError, match="`ridge` must be finite and at least 0, got -1"):
        interpolation_from_gram(gram, torch.tensor([1]), ridge=-1.0)
    with pytest.raises(ValueError, match="`max_entry` must be finite and greater than 0, got 0"):
        interpolation_from_gram(gram, torch.tensor([1]), max_entry=0.0)
    with pytest.raises(ValueError, match="`cross` must be float64 with 4 rows"):
        least_squares_from_moments(gram, torch.ones(3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="`holdout` must have the shapes"):
        least_squares_from_moments(
            gram, torch.ones(4, 2).double(), holdout=(gram, torch.ones(4, 3).double())
        )
