from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.linalg import CrossMoments, Moments, NonFiniteError


def rows_of(n: int, m: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=generator) + mean


def test_moments_equal_numpy_in_float64() -> None:
    a = rows_of(3000, 30, mean=2.0)
    moments = Moments(30).update(a)
    dense = a.double().numpy()
    assert moments.count == 3000
    np.testing.assert_allclose(moments.mean.numpy(), dense.mean(0), rtol=1e-13)
    np.testing.assert_allclose(
        moments.scatter.numpy(), np.cov(dense.T) * 2999, rtol=1e-10, atol=1e-9
    )
    np.testing.assert_allclose(moments.gram.numpy(), dense.T @ dense, rtol=1e-12)


def test_scatter_does_not_cancel_when_the_mean_is_large() -> None:
    a = rows_of(5000, 8).double()
    shifted = Moments(8)
    for batch in (a + 1e8).split(700):
        shifted.update(batch)
    # Adding 1e8 rounds entries to 1e-8; the textbook sum of squares would be off by 1e16 eps = 1.
    reference = np.cov(a.numpy().T) * 4999
    np.testing.assert_allclose(shifted.scatter.numpy(), reference, rtol=1e-5, atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, 2500), max_size=6), m=st.integers(1, 300))
def test_how_the_stream_is_cut_into_batches_changes_no_bit(cuts: list[int], m: int) -> None:
    a = rows_of(2500, m)
    whole = Moments(m).update(a)
    cut = Moments(m)
    for batch in a.tensor_split(sorted(cuts)):
        cut.update(batch)
    assert torch.equal(cut.scatter, whole.scatter)
    assert torch.equal(cut.mean, whole.mean)


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(16)))
def test_sixteen_shards_in_any_order_equal_one_pass(order: list[int]) -> None:
    a = rows_of(1600, 20, mean=3.0).double()
    shards = [Moments(20).update(part) for part in a.tensor_split(16)]
    merged = Moments(20)
    for i in order:
        merged = merged + shards[i]
    gram = a.T @ a
    assert merged.count == 1600
    assert float((merged.gram - gram).norm() / gram.norm()) <= 1e-12
    centred = a - a.mean(0)
    assert float((merged.scatter - centred.T @ centred).norm() / gram.norm()) <= 1e-12


def test_merging_leaves_the_other_unchanged_and_addition_both() -> None:
    a, b = Moments(4).update(rows_of(9, 4)), Moments(4).update(rows_of(7, 4, seed=1))
    before = b.state_dict()
    total = a + b
    assert (a.count, b.count, total.count) == (9, 7, 16)
    a.merge(b)
    assert a.count == 16
    assert torch.equal(b.scatter, before["scatter"])


def test_updating_after_reading_continues_the_stream() -> None:
    a = rows_of(2500, 5)
    moments = Moments(5)
    for batch in a.split(321):
        moments.update(batch)
        assert moments.gram.shape == (5, 5)
    dense = a.double()
    torch.testing.assert_close(moments.gram, dense.T @ dense, rtol=1e-12, atol=1e-12)


def test_state_survives_a_round_trip_and_is_a_copy() -> None:
    moments = Moments(6).update(rows_of(50, 6))
    state = moments.state_dict()
    rebuilt = Moments.from_state_dict(state)
    moments.update(rows_of(50, 6, seed=1))
    assert rebuilt.count == 50
    rebuilt.update(rows_of(50, 6, seed=1))
    torch.testing.assert_close(rebuilt.gram, moments.gram, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_batches_are_accumulated_in_float64(dtype: torch.dtype) -> None:
    a = rows_of(4000, 10).to(dtype)
    dense = a.double()
    torch.testing.assert_close(Moments(10).update(a).gram, dense.T @ dense, rtol=1e-12, atol=1e-9)


def test_memory_does_not_grow_with_the_rows() -> None:
    moments = Moments(16)
    for _ in range(5):
        moments.update(rows_of(3000, 16))
        assert moments._buffer is not None
        assert moments._buffer.numel() == 1025 * 16
    assert moments.scatter.numel() == 256
    assert moments._buffer is None


def test_batches_without_rows_count_for_nothing() -> None:
    moments = Moments(3).update(torch.empty(0, 3))
    assert moments.count == 0
    assert torch.equal(moments.gram, torch.zeros(3, 3, dtype=torch.float64))


def test_cross_moments_give_the_normal_equations_of_both_kinds() -> None:
    x, y = rows_of(2100, 7, mean=1.0), rows_of(2100, 3, seed=2, mean=-2.0)
    moments = CrossMoments(7, 3)
    for i in range(0, 2100, 400):
        moments.update(x[i : i + 400], y[i : i + 400])
    for centered in (False, True):
        a, b = x.double(), y.double()
        if centered:
            a, b = a - a.mean(0), b - b.mean(0)
        gram, cross, energy = moments.normal_equations(centered=centered)
        torch.testing.assert_close(gram, a.T @ a, rtol=1e-11, atol=1e-9)
        torch.testing.assert_close(cross, a.T @ b, rtol=1e-11, atol=1e-9)
        torch.testing.assert_close(energy, b.square().sum(0), rtol=1e-11, atol=1e-9)


def test_cross_moments_merge_to_one_pass() -> None:
    x, y = rows_of(900, 5, mean=4.0), rows_of(900, 2, seed=3)
    whole = CrossMoments(5, 2).update(x, y)
    parts = CrossMoments(5, 2).update(x[:300], y[:300]) + CrossMoments(5, 2).update(
        x[300:], y[300:]
    )
    for mine, theirs in zip(parts.normal_equations(), whole.normal_equations(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-10)


def test_bad_batches_are_refused_by_name_and_change_nothing() -> None:
    moments = Moments(3).update(rows_of(5, 3))
    bad = rows_of(4, 3)
    bad[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"non-finite entries, the first at \(2, 1\)"):
        moments.update(bad)
    with pytest.raises(ValueError, match="must have 3 columns"):
        moments.update(rows_of(4, 2))
    with pytest.raises(ValueError, match="two dimensions"):
        moments.update(torch.zeros(2, 4, 3))
    with pytest.raises(TypeError, match="floating point, got torch.int64"):
        moments.update(torch.zeros(2, 3, dtype=torch.int64))
    assert moments.count == 5


def test_merging_what_does_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="num_channels=4"):
        Moments(3).merge(Moments(4))
    with pytest.raises(TypeError, match="cannot merge a CrossMoments into a Moments"):
        Moments(3).merge(CrossMoments(2, 1))
    with pytest.raises(ValueError, match="lacks scatter"):
        Moments.from_state_dict(
            {"num_channels": 3, "precision": "float64", "count": 0, "mean": torch.zeros(3)}
        )
    with pytest.raises(ValueError, match="`num_channels` must be positive, got 0"):
        Moments(0)
    with pytest.raises(ValueError, match="precision=float64 into one with precision=float32"):
        Moments(3, precision="float32").merge(Moments(3))
    with pytest.raises(ValueError, match="`precision`"):
        Moments(3, precision="bfloat16")


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_products_in_float32_err_by_rounding_of_each_entry_alone(mean: float) -> None:
    scales = torch.logspace(-8, 8, 40)
    a = rows_of(20_000, 40, mean=mean) * scales
    moments = Moments(40, precision="float32").update(a)
    dense = a.double()
    centred = dense - dense.mean(0)
    norms = centred.norm(dim=0)
    error = (moments.scatter - centred.T @ centred) / norms / norms[:, None]
    assert float(error.abs().max()) <= 1e-6
    deviation = norms / len(a) ** 0.5
    assert float(((moments.mean - dense.mean(0)) / deviation).abs().max()) <= 1e-7
    assert moments.scatter.dtype is torch.float64


def test_products_in_float32_are_full_ones_whatever_the_process_allows() -> None:
    a = rows_of(3000, 20)
    expected = Moments(20, precision="float32").update(a).scatter
    torch.set_float32_matmul_precision("medium")
    try:
        found = Moments(20, precision="float32").update(a).scatter
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.max())


def test_features_and_targets_must_match() -> None:
    moments = CrossMoments(2, 1)
    with pytest.raises(ValueError, match="must have 2 and 1 columns"):
        moments.update(torch.ones(3, 1), torch.ones(3, 1))
    with pytest.raises(ValueError, match="as many rows"):
        moments.update(torch.ones(3, 2), torch.ones(4, 1))


@pytest.mark.parametrize(
    ("precision", "value"), [("float64", 1e160), ("float32", 1e25), ("float32", 1e60)]
)
@pytest.mark.parametrize("rows", [3, 1024, 3000])
def test_sums_that_overflow_are_refused_with_the_column(
    precision: str, value: float, rows: int
) -> None:
    a = torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a[1, 3] = value
    with pytest.raises(NonFiniteError, match=rf"1 columns overflow.*column 3.*{precision}"):
        _ = Moments(5, precision=precision).update(a).scatter


def test_sums_that_overflow_only_together_are_refused_when_shards_are_merged() -> None:
    half = torch.tensor([[1e154], [-1e154]], dtype=torch.float64).repeat(70, 1)
    shards = [Moments(1).update(half + shift) for shift in (1e154, -1e154)]
    with pytest.raises(NonFiniteError, match="overflow"):
        _ = (shards[0] + shards[1]).scatter


def test_targets_that_overflow_are_refused() -> None:
    moments = CrossMoments(2, 1)
    moments.update(torch.ones(3, 2).double(), 1e200 * torch.ones(3, 1).double().cumsum(0))
    with pytest.raises(NonFiniteError, match="column 2"):
        moments.normal_equations()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_an_error_of_their_own_and_a_wrong_shape_is_not(
    value: float,
) -> None:
    with pytest.raises(NonFiniteError, match="non-finite"):
        Moments(2).update(torch.tensor([[1.0, value]]))
    with pytest.raises(ValueError, match="columns") as caught:
        Moments(2).update(torch.ones(1, 3))
    assert not isinstance(caught.value, NonFiniteError)
