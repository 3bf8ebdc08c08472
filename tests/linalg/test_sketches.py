from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.linalg import TSQR, CountSketch, GaussianSketch, Moments, SparseSketch
from tests.linalg.matrices import decaying_matrix

SKETCHES = [CountSketch, GaussianSketch, SparseSketch]


def normal(n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def projection(kind: Any, num_rows: int, n: int, seed: int = 0) -> torch.Tensor:
    """S itself: the sketch of the identity."""
    return kind(n, num_rows, seed=seed).update(torch.eye(n, dtype=torch.float64)).matrix


@pytest.mark.parametrize("kind", SKETCHES)
@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(0, 700), max_size=5))
def test_a_sketch_is_the_same_linear_map_however_batches_fall(kind: Any, cuts: list[int]) -> None:
    a = normal(700, 6)
    sketch = kind(6, 30, seed=3)
    for batch in a.tensor_split(sorted(cuts)):
        sketch.update(batch)
    dense = projection(kind, 30, 700, seed=3) @ a
    torch.testing.assert_close(sketch.matrix, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SKETCHES)
def test_sixteen_shards_in_any_order_equal_one_pass(kind: Any) -> None:
    a = normal(1600, 8)
    whole = kind(8, 40, seed=5).update(a)
    starts = np.random.default_rng(0).permutation(16) * 100
    merged = kind(8, 40, seed=5)
    for start in starts:
        merged.merge(kind(8, 40, seed=5, first_row=int(start)).update(a[start : start + 100]))
    assert merged.count == 1600
    assert float((merged.matrix - whole.matrix).norm() / whole.matrix.norm()) <= 1e-12


@pytest.mark.parametrize("kind", SKETCHES)
def test_the_gram_matrix_of_a_sketch_is_unbiased(kind: Any) -> None:
    a = normal(60, 4)
    mean = torch.zeros(4, 4, dtype=torch.float64)
    for seed in range(400):
        s = kind(4, 20, seed=seed).update(a).matrix
        mean += s.T @ s / 400
    # The standard error of an entry is about |a_i||a_j| sqrt(2 / 20 / 400) = 1.6 % of the norms.
    gram = a.T @ a
    assert float((mean - gram).abs().max()) <= 5 * 0.016 * float(gram.diagonal().max())


def test_count_sketch_has_one_sign_a_row_like_clarkson_and_woodruff() -> None:
    ours = projection(CountSketch, 50, 3000)
    assert torch.equal(ours.abs().sum(0), torch.ones(3000, dtype=torch.float64))
    theirs = scipy.linalg.clarkson_woodruff_transform(
        np.eye(3000), 50, rng=np.random.default_rng(0)
    )
    # Both spread 3,000 rows over 50 buckets and two signs: chi-square with 99 degrees of freedom,
    # whose 99.99 % point is 161.
    for matrix in (ours.numpy(), theirs):
        cells = np.concatenate([(matrix > 0).sum(1), (matrix < 0).sum(1)])
        assert ((cells - 30) ** 2 / 30).sum() < 161


def test_count_sketch_equals_scipys_transform_for_the_same_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a = normal(500, 7)
    rng = np.random.default_rng(1)
    reference = scipy.linalg.clarkson_woodruff_transform(a.numpy(), 40, rng=rng)
    # The same generator state gives the same S; of the identity, S itself.
    s = scipy.linalg.clarkson_woodruff_transform(np.eye(500), 40, rng=np.random.default_rng(1))
    target, sign = torch.from_numpy(np.abs(s).argmax(0)), torch.from_numpy(s.sum(0))

    def same_hash(self: CountSketch, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return target[first : first + count], sign[first : first + count]

    monkeypatch.setattr(CountSketch, "_hash", same_hash)
    sketch = CountSketch(7, 40)
    for batch in a.split(130):
        sketch.update(batch)
    np.testing.assert_allclose(sketch.matrix.numpy(), reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SKETCHES)
def test_enough_rows_embed_the_column_space(kind: Any) -> None:
    q = torch.linalg.qr(normal(4000, 5)).Q
    # s = m(m + 1)/(delta eps^2) with delta = 0.1, eps = 0.5 for CountSketch.
    values = torch.linalg.svdvals(kind(5, 1200, seed=0).update(q).matrix)
    assert 0.5 < float(values.min().square()) and float(values.max().square()) < 1.5


@pytest.mark.parametrize("kind", SKETCHES)
def test_another_seed_is_another_sketch_and_the_same_seed_the_same(kind: Any) -> None:
    a = normal(300, 4)
    first, again, other = (kind(4, 25, seed=seed).update(a).matrix for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("kind", SKETCHES)
def test_state_survives_a_round_trip_in_the_middle_of_a_stream(kind: Any) -> None:
    a = normal(900, 4)
    whole = kind(4, 25, seed=1, first_row=37).update(a)
    resumed = kind.from_state_dict(kind(4, 25, seed=1, first_row=37).update(a[:401]).state_dict())
    resumed.update(a[401:])
    assert resumed.count == 900
    torch.testing.assert_close(resumed.matrix, whole.matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SKETCHES)
def test_sketches_that_do_not_belong_together_are_not_merged(kind: Any) -> None:
    a = normal(30, 4)
    sketch = kind(4, 25, seed=1).update(a)
    before = sketch.matrix.clone()
    with pytest.raises(ValueError, match="seed=2"):
        sketch.merge(kind(4, 25, seed=2, first_row=30).update(a))
    with pytest.raises(ValueError, match="num_rows=26"):
        sketch.merge(kind(4, 26, seed=1, first_row=30).update(a))
    with pytest.raises(
        ValueError, match="rows 20 to 30 of the stream would enter the sketch twice"
    ):
        sketch.merge(kind(4, 25, seed=1, first_row=20).update(a))
    with pytest.raises(TypeError, match="cannot merge a Moments"):
        sketch.merge(Moments(4))
    assert torch.equal(sketch.matrix, before)
    assert sketch.count == 30


def test_bad_options_of_sketches_are_named() -> None:
    with pytest.raises(ValueError, match="`num_rows` must be positive, got 0"):
        CountSketch(3, 0)
    with pytest.raises(ValueError, match="`seed` must not be negative, got -1"):
        CountSketch(3, 4, seed=-1)
    with pytest.raises(ValueError, match="`density` must be at most 1, got 2.0"):
        SparseSketch(3, 4, density=2.0)


def test_tsqr_equals_lapacks_triangle_whatever_the_batches() -> None:
    a = normal(3000, 25)
    stream = TSQR(25)
    for batch in a.split(333):
        stream.update(batch)
    reference = scipy.linalg.qr(a.numpy(), mode="economic")[1]
    reference *= np.sign(np.diag(reference))[:, None]
    np.testing.assert_allclose(stream.r.numpy(), reference, rtol=1e-11, atol=1e-11)


def test_tsqr_shards_in_any_order_equal_one_pass() -> None:
    a = normal(1600, 12)
    whole = TSQR(12).update(a)
    merged = TSQR(12)
    for i in torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist():
        merged = merged + TSQR(12).update(a[100 * i : 100 * i + 100])
    assert merged.count == 1600
    assert float((merged.r - whole.r).norm() / whole.r.norm()) <= 1e-12


def test_tsqr_keeps_singular_values_that_a_gram_matrix_loses() -> None:
    a = decaying_matrix(500, 20, seed=0, smallest=1e-11)
    values = torch.linalg.svdvals(TSQR(20).update(a).r)
    torch.testing.assert_close(values[-1], torch.tensor(1e-11).double(), rtol=1e-3, atol=0.0)
    from_gram = torch.linalg.eigvalsh(Moments(20).update(a).gram)[0].abs().sqrt()
    assert abs(float(from_gram) / 1e-11 - 1) > 1


def test_tsqr_of_fewer_rows_than_channels_has_their_gram_matrix() -> None:
    a = normal(3, 7)
    r = TSQR(7).update(a).r
    assert r.shape == (7, 7)
    torch.testing.assert_close(r.T @ r, a.T @ a, rtol=1e-12, atol=1e-12)
    assert torch.equal(r, r.triu())
