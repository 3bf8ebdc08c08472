from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.linalg import (
    TSQR,
    CountSketch,
    CrossMoments,
    GaussianSketch,
    InterpolativeDecomposition,
    Moments,
    NumericalWarning,
    SparseSketch,
    interpolative_decomposition,
)
from tests.linalg.matrices import decaying_matrix

PIVOTINGS = ["cpqr", "cholesky", "strong", "randomized"]
STATISTICS = [Moments, TSQR, lambda m: CountSketch(m, 4 * m), lambda m: GaussianSketch(m, 4 * m)]


def error(a: torch.Tensor, result: InterpolativeDecomposition) -> float:
    """‖A - A_J T‖ / ‖A‖ from the matrix itself."""
    return float((a - a[:, result.columns] @ result.interpolation).norm() / a.norm())


def best_error(a: torch.Tensor, columns: torch.Tensor) -> float:
    """The same for LAPACK's least-squares solution on these columns."""
    kept = a[:, columns].numpy()
    solution = scipy.linalg.lstsq(kept, a.numpy(), lapack_driver="gelsy")[0]
    return float((a - torch.from_numpy(kept @ solution)).norm() / a.norm())


@pytest.mark.parametrize("pivoting", PIVOTINGS)
def test_every_pivoting_gives_the_least_squares_solution_on_its_columns(
    decaying: torch.Tensor, pivoting: str
) -> None:
    result = interpolative_decomposition(decaying, rank=17, pivoting=pivoting)
    assert len(set(result.columns.tolist())) == result.rank == 17
    assert torch.equal(result.interpolation[:, result.columns], torch.eye(17).double())
    reference = best_error(decaying, result.columns)
    assert error(decaying, result) == pytest.approx(reference, rel=1e-8)
    assert result.error == pytest.approx(reference, rel=1e-8)


@pytest.mark.parametrize("pivoting", PIVOTINGS)
def test_the_error_curve_holds_at_every_rank(decaying: torch.Tensor, pivoting: str) -> None:
    result = interpolative_decomposition(decaying, pivoting=pivoting)
    assert len(result.error_curve) == result.rank + 1 == 41
    for k in range(0, 41, 8):
        shorter = result.truncate(k)
        assert torch.equal(shorter.columns, result.columns[:k])
        assert float(result.error_curve[k]) == pytest.approx(error(decaying, shorter), abs=1e-9)


@pytest.mark.parametrize("tall", [True, False])
def test_cpqr_chooses_what_lapack_chooses(tall: bool) -> None:
    a = decaying_matrix(300 if tall else 50, 40, seed=0)
    weights = torch.linspace(2.0, 0.3, 40, dtype=torch.float64)
    for w in (None, weights):
        scaled = a if w is None else a * w
        order = scipy.linalg.qr(scaled.numpy(), mode="r", pivoting=True)[1]
        result = interpolative_decomposition(a, column_weights=w)
        np.testing.assert_array_equal(result.columns.numpy(), order)


def test_cholesky_is_never_worse_than_lapacks_cpqr(decaying: torch.Tensor) -> None:
    order = scipy.linalg.qr(decaying.numpy(), mode="r", pivoting=True)[1]
    for k in (5, 20, 35):
        result = interpolative_decomposition(decaying, rank=k, pivoting="cholesky")
        assert error(decaying, result) <= 1.01 * best_error(decaying, torch.from_numpy(order[:k]))


@pytest.mark.parametrize("kind", STATISTICS, ids=["moments", "tsqr", "count", "gauss"])
@pytest.mark.parametrize("pivoting", PIVOTINGS)
def test_streamed_statistics_serve_as_well_as_the_matrix(kind: Any, pivoting: str) -> None:
    a = decaying_matrix(400, 30, seed=2)
    statistics = kind(30)
    for batch in a.split(90):
        statistics.update(batch)
    result = interpolative_decomposition(statistics, rank=15, pivoting=pivoting)
    exact = interpolative_decomposition(a, rank=15, pivoting=pivoting)
    if kind in (Moments, TSQR):
        assert torch.equal(result.columns, exact.columns)
        torch.testing.assert_close(result.interpolation, exact.interpolation, rtol=0.0, atol=1e-8)
    else:
        assert error(a, result) <= 1.6 * error(a, exact)


@pytest.mark.parametrize("norm", ["fro", "spectral"])
@pytest.mark.parametrize("pivoting", PIVOTINGS)
@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-5])
def test_a_tolerance_is_met_at_the_smallest_rank(
    norm: str, pivoting: str, tolerance: float
) -> None:
    a = decaying_matrix(200, 40, seed=6, smallest=1e-6)
    ordinal = {"fro": "fro", "spectral": 2}[norm]

    def ratio(result: InterpolativeDecomposition) -> float:
        left = (a - a[:, result.columns] @ result.interpolation).numpy()
        return float(np.linalg.norm(left, ordinal) / np.linalg.norm(a.numpy(), ordinal))

    result = interpolative_decomposition(a, tolerance=tolerance, norm=norm, pivoting=pivoting)
    assert ratio(result) <= tolerance
    # The spectral norm is known to 5 %, of A and of the residual.
    assert ratio(result.truncate(result.rank - 1)) > tolerance * (1.0 if norm == "fro" else 0.9)


def test_a_tolerance_that_a_gram_matrix_cannot_resolve_is_reported() -> None:
    a = decaying_matrix(200, 40, seed=6, smallest=1e-12)
    with pytest.warns(NumericalWarning, match="tolerance of 1.0e-11 lies below"):
        interpolative_decomposition(a, tolerance=1e-11, pivoting="cholesky")
    assert error(a, interpolative_decomposition(a, tolerance=1e-11)) <= 1e-11


def test_columns_are_chosen_for_what_the_weight_reads(decaying: torch.Tensor) -> None:
    weight = torch.randn(9, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_weight = interpolative_decomposition(decaying, rank=10, weight=weight)
    by_norms = interpolative_decomposition(decaying, rank=10, column_weights=weight.norm(dim=0))
    assert torch.equal(by_weight.columns, by_norms.columns)


def test_groups_stay_together_and_are_interpolated_by_least_squares(
    decaying: torch.Tensor,
) -> None:
    weight = torch.randn(9, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for source in (decaying, Moments(40).update(decaying), TSQR(40).update(decaying)):
        result = interpolative_decomposition(source, rank=20, group_size=5, weight=weight)
        groups = result.columns.reshape(4, 5)
        assert torch.equal(groups, groups[:, :1] // 5 * 5 + torch.arange(5))
        assert error(decaying, result) == pytest.approx(best_error(decaying, result.columns))
        assert result.error == pytest.approx(error(decaying, result), rel=1e-8)
        assert error(decaying, result.truncate(10)) == pytest.approx(float(result.error_curve[2]))
    tolerant = interpolative_decomposition(decaying, tolerance=0.05, group_size=5, weight=weight)
    assert tolerant.rank % 5 == 0
    assert tolerant.error <= 0.05 < float(tolerant.error_curve[tolerant.rank // 5 - 1])


def test_centred_moments_decompose_the_deviations(decaying: torch.Tensor) -> None:
    moments = Moments(40).update(decaying)
    result = interpolative_decomposition(moments, rank=12, centered=True)
    deviations = decaying - decaying.mean(0)
    exact = interpolative_decomposition(deviations, rank=12)
    assert torch.equal(result.columns, exact.columns)
    assert result.error == pytest.approx(error(deviations, exact), rel=1e-8)


def test_exactly_low_rank_matrices_lose_nothing() -> None:
    a = decaying_matrix(100, 7, seed=0, smallest=0.1) @ decaying_matrix(7, 30, seed=1, smallest=0.1)
    for pivoting in PIVOTINGS:
        result = interpolative_decomposition(a, pivoting=pivoting)
        assert result.rank == 7
        assert error(a, result) <= 1e-7
    assert error(a, interpolative_decomposition(a)) <= 1e-14


def test_asking_for_more_than_the_numerical_rank_is_reported() -> None:
    a = decaying_matrix(100, 7, seed=0) @ decaying_matrix(7, 30, seed=1)
    for pivoting in PIVOTINGS:
        with pytest.warns(NumericalWarning, match="9 columns were asked for.*rank is 7"):
            result = interpolative_decomposition(a, rank=9, pivoting=pivoting)
        assert result.rank == 9
        assert error(a, result) <= 1e-7


def test_ill_conditioned_matrices_are_resolved_by_cpqr_and_tsqr() -> None:
    a = decaying_matrix(300, 40, seed=0, smallest=1e-10)
    for source in (a, TSQR(40).update(a)):
        for pivoting in ("cpqr", "strong"):
            result = interpolative_decomposition(source, rank=38, pivoting=pivoting)
            assert error(a, result) == pytest.approx(best_error(a, result.columns), rel=1e-4)
            assert result.error == pytest.approx(error(a, result), rel=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 25),
    m=st.integers(1, 25),
    rank=st.integers(1, 25),
    special=st.sampled_from(["none", "zero", "constant", "duplicate", "tiny", "huge"]),
    pivoting=st.sampled_from(PIVOTINGS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_any_finite_matrix_is_decomposed_without_nan_and_as_well_as_dense_least_squares(
    n: int, m: int, rank: int, special: str, pivoting: str, dtype: torch.dtype, seed: int
) -> None:
    a = decaying_matrix(n, rank, seed=seed) @ decaying_matrix(rank, m, seed=seed + 1)
    some = torch.arange(m) % 3 == 0
    if special == "duplicate":
        a[:, some] = a[:, :1].clone()
    elif special != "none":
        fill = {"zero": 0.0, "constant": 1.0, "tiny": 1e-30, "huge": 1e30}[special]
        a = torch.where(some, fill if special in ("zero", "constant") else fill * a, a)
    a = a.to(dtype).double()
    result = interpolative_decomposition(a.to(dtype), pivoting=pivoting)
    for k in {0, result.rank // 2, result.rank}:
        shorter = result.truncate(k)
        assert bool(torch.isfinite(shorter.interpolation).all())
        if float(a.norm()) and k:
            assert error(a, shorter) == pytest.approx(best_error(a, shorter.columns), abs=2e-7)
            assert shorter.error == pytest.approx(error(a, shorter), abs=2e-7)


@pytest.mark.parametrize("pivoting", PIVOTINGS)
def test_a_zero_matrix_keeps_nothing_and_loses_nothing(pivoting: str) -> None:
    result = interpolative_decomposition(torch.zeros(8, 5), pivoting=pivoting)
    assert (result.rank, result.error) == (0, 0.0)


def test_the_same_seed_gives_the_same_bits(decaying: torch.Tensor) -> None:
    first, again = (
        interpolative_decomposition(decaying, rank=9, pivoting="randomized", seed=3)
        for _ in range(2)
    )
    assert torch.equal(first.columns, again.columns)
    assert torch.equal(first.interpolation, again.interpolation)


def test_bad_input_is_named() -> None:
    a = torch.ones(6, 4)
    bad = a.clone()
    bad[3, 2] = float("inf")
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (ValueError, r"`a` has 1 non-finite entries, the first at \(3, 2\) \(inf\)", bad, {}),
        (ValueError, r"`rank` must lie in 0..4, got 5", a, {"rank": 5}),
        (ValueError, r"`rank` must lie in 0..2, got 3", a[:2], {"rank": 3}),
        (
            ValueError,
            "`tolerance` must be finite and greater than 0, got 0.0",
            a,
            {"tolerance": 0.0},
        ),
        (ValueError, "`rank` or `tolerance`, not both", a, {"rank": 1, "tolerance": 0.1}),
        (ValueError, r"divisor of the number of channels \(4\), got 3", a, {"group_size": 3}),
        (ValueError, "multiple of the group size 2, got 3", a, {"group_size": 2, "rank": 3}),
        (ValueError, "leave `pivoting`", a, {"group_size": 2, "pivoting": "strong"}),
        (ValueError, "one of cpqr, cholesky", a, {"pivoting": "qr"}),
        (ValueError, "one of fro, spectral; got 'l1'", a, {"norm": "l1"}),
        (
            ValueError,
            "`bound` must be finite and greater than 1",
            a,
            {"pivoting": "strong", "bound": 1.0, "rank": 1},
        ),
        (ValueError, "two dimensions", torch.ones(3), {}),
        (TypeError, "floating point, got torch.int64", torch.ones(3, 2, dtype=torch.int64), {}),
        (ValueError, "at least one row and column", torch.ones(0, 4), {}),
        (ValueError, "this Moments has seen no rows", Moments(4), {}),
        (ValueError, "this TSQR has seen no rows", TSQR(4), {}),
        (ValueError, "`centered` needs Moments", a, {"centered": True}),
        (ValueError, "`centered` needs Moments", SparseSketch(4, 9).update(a), {"centered": True}),
        (ValueError, "`weight` or `column_weights`", a, {"weight": a, "column_weights": a[0]}),
        (ValueError, "one number a column", a, {"column_weights": torch.ones(3)}),
        (TypeError, "CrossMoments", CrossMoments(2, 2), {}),
    ]
    for kind, message, source, options in cases:
        with pytest.raises(kind, match=message):
            interpolative_decomposition(source, **options)


def test_tensors_on_different_devices_are_refused() -> None:
    a, elsewhere = torch.ones(6, 4), torch.ones(4, device="meta")
    with pytest.raises(ValueError, match="`column_weights` is on meta, but the other"):
        interpolative_decomposition(a, column_weights=elsewhere)


def test_truncation_is_refused_beyond_the_rank(decaying: torch.Tensor) -> None:
    result = interpolative_decomposition(decaying, rank=10)
    with pytest.raises(ValueError, match=r"`rank` must lie in 0..10, got 11"):
        result.truncate(11)
    with pytest.raises(ValueError, match="`skeleton` must be"):
        result.to_svd(decaying)
