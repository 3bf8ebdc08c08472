from __future__ import annotations

import pytest
import torch

from stat_prune.linalg.solving.in_place import (
    cholesky,
    cholesky_solve,
    eigh,
    principal_part,
    undo_cholesky,
)
from stat_prune.linalg.solving.least_squares import solve_normal


@pytest.fixture
def gram() -> torch.Tensor:
    rows = torch.randn(900, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return rows.T @ rows


def test_the_factor_is_in_the_memory_of_the_matrix_and_can_be_undone(gram: torch.Tensor) -> None:
    before = gram.clone()
    factor, found = cholesky(gram)
    assert found
    assert factor.data_ptr() == gram.data_ptr()
    torch.testing.assert_close(factor.tril(), torch.linalg.cholesky(before))
    undo_cholesky(gram, before.diagonal())
    assert torch.equal(gram, before)


def test_a_matrix_without_a_factor_is_told_and_can_be_restored(gram: torch.Tensor) -> None:
    gram[300, 300] = -1.0
    before = gram.clone()
    _, found = cholesky(gram)
    assert not found
    undo_cholesky(gram, before.diagonal())
    assert torch.equal(gram, before)


def test_the_solution_takes_the_place_of_the_right_hand_side(gram: torch.Tensor) -> None:
    right = torch.randn(7, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).T
    reference = torch.linalg.solve(gram, right)
    solution = cholesky_solve(cholesky(gram)[0], right)
    assert solution.data_ptr() == right.data_ptr()
    torch.testing.assert_close(solution, reference)


@pytest.mark.parametrize("index", [range(600), range(0, 600, 2), range(333, 600), (599,), ()])
def test_a_principal_part_in_place_is_that_of_indexing(gram: torch.Tensor, index) -> None:
    kept = torch.tensor(index, dtype=torch.int64)
    reference = gram[kept][:, kept]
    assert torch.equal(principal_part(gram, kept), reference)
    part = principal_part(gram, kept, overwrite=True)
    assert torch.equal(part, reference)
    assert part.is_contiguous()
    assert len(kept) == 0 or part.data_ptr() == gram.data_ptr()


def test_eigenvectors_are_in_the_memory_of_the_matrix(gram: torch.Tensor) -> None:
    before = gram.clone()
    values, vectors = eigh(gram)
    assert vectors.data_ptr() == gram.data_ptr()
    torch.testing.assert_close(values, torch.linalg.eigvalsh(before))
    torch.testing.assert_close((vectors * values) @ vectors.T, before)


@pytest.mark.parametrize("rank", [600, 400])
@pytest.mark.parametrize("max_entry", [None, 1e-3])
@pytest.mark.filterwarnings("ignore::stat_prune.linalg.NumericalWarning")
def test_overwriting_the_right_hand_side_gives_the_same_bits(rank, max_entry) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(rank, 600, dtype=torch.float64, generator=generator)
    right = torch.randn(9, 600, dtype=torch.float64, generator=generator).T
    before = right.clone()
    normal = rows.T @ rows
    kept = solve_normal(normal.clone(), right, 0.0, max_entry)
    assert torch.equal(right, before)
    assert torch.equal(solve_normal(normal, right, 0.0, max_entry, overwrite=True), kept)
