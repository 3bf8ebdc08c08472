"""stat_prune.linalg where scipy.linalg.interpolative is used today, and on its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg.interpolative as sli
import torch

from stat_prune.linalg import InterpolativeDecomposition, interpolative_decomposition, spectral_norm
from tests.linalg.matrices import decaying_matrix

ROOT = Path(__file__).parents[2]


@pytest.fixture
def a() -> np.ndarray:
    return decaying_matrix(200, 30, seed=0, smallest=1e-6).numpy()


def scipy_layout(result: InterpolativeDecomposition, m: int) -> tuple[np.ndarray, np.ndarray]:
    """`idx` and `proj` of interp_decomp, from a decomposition of ours."""
    columns = result.columns.numpy()
    rest = np.setdiff1d(np.arange(m), columns)
    return np.concatenate([columns, rest]), result.interpolation.numpy()[:, rest]


def test_idx_and_proj_serve_every_function_of_scipy(a: np.ndarray) -> None:
    result = interpolative_decomposition(torch.from_numpy(a), rank=12)
    idx, proj = scipy_layout(result, 30)
    skeleton = sli.reconstruct_skel_matrix(a, 12, idx)
    np.testing.assert_array_equal(skeleton, a[:, result.columns])
    np.testing.assert_allclose(
        sli.reconstruct_interp_matrix(idx, proj), result.interpolation.numpy(), atol=0
    )
    approximation = sli.reconstruct_matrix_from_id(skeleton, idx, proj)
    np.testing.assert_allclose(approximation, skeleton @ result.interpolation.numpy(), atol=1e-14)


def test_a_fixed_rank_is_as_good_as_interp_decomp(a: np.ndarray) -> None:
    idx, proj = sli.interp_decomp(a, 12, rand=False)
    theirs = sli.reconstruct_matrix_from_id(a[:, idx[:12]], idx, proj)
    ours = interpolative_decomposition(torch.from_numpy(a), rank=12)
    np.testing.assert_array_equal(ours.columns.numpy(), idx[:12])
    got = a[:, ours.columns] @ ours.interpolation.numpy()
    assert np.linalg.norm(a - got) <= np.linalg.norm(a - theirs) * (1 + 1e-9)


def test_a_tolerance_is_met_as_by_interp_decomp(a: np.ndarray) -> None:
    ours = interpolative_decomposition(torch.from_numpy(a), tolerance=1e-3, norm="spectral")
    k, _, _ = sli.interp_decomp(a, 1e-3, rand=False)
    assert abs(ours.rank - k) <= 3
    left = a - a[:, ours.columns] @ ours.interpolation.numpy()
    assert np.linalg.norm(left, 2) <= 1e-3 * np.linalg.norm(a, 2)


def test_to_svd_equals_id_to_svd(a: np.ndarray) -> None:
    ours = interpolative_decomposition(torch.from_numpy(a), rank=12)
    idx, proj = scipy_layout(ours, 30)
    skeleton = a[:, ours.columns]
    u, s, v = ours.to_svd(torch.from_numpy(skeleton))
    their_u, their_s, their_v = sli.id_to_svd(skeleton, idx, proj)
    np.testing.assert_allclose(s.numpy(), their_s, rtol=1e-10)
    np.testing.assert_allclose(
        (u * s @ v.T).numpy(), their_u * their_s @ their_v.T, rtol=0, atol=1e-13
    )
    assert u.shape == (200, 12) and v.shape == (30, 12)
    np.testing.assert_allclose((u.T @ u).numpy(), np.eye(12), atol=1e-13)


def test_the_spectral_norm_agrees_with_scipys_estimate(a: np.ndarray) -> None:
    lower, upper = spectral_norm(torch.from_numpy(a))
    estimate = sli.estimate_spectral_norm(a, rng=np.random.default_rng(0))
    assert lower == pytest.approx(estimate, rel=0.06)
    assert lower <= np.linalg.norm(a, 2) * (1 + 1e-12) and upper >= np.linalg.norm(a, 2)


def test_the_code_in_the_documentation_runs() -> None:
    text = (ROOT / "docs" / "linalg.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)


def test_it_needs_neither_transformers_nor_the_rest_of_the_project() -> None:
    code = (
        "import sys, types\n"
        "package = types.ModuleType('stat_prune')\n"
        f"package.__path__ = [{str(ROOT / 'stat_prune')!r}]\n"
        "sys.modules['stat_prune'] = package\n"
        "sys.modules['transformers'] = None\n"
        "import stat_prune.linalg\n"
        "ours = {n for n in sys.modules if n.startswith('stat_prune.')}\n"
        "assert all(n.startswith('stat_prune.linalg') for n in ours), ours\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
