"""Tuned masks against LSMR and dense least squares on the tall matrix itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import lsmr
from toys import head_block, neuron_block

from stat_prune.baselines.mask_tuning import tuned_masks
from stat_prune.linalg import CrossMoments

BLOCKS = {"neurons": neuron_block(9, 5, bias=False), "heads": head_block(4, 4, 3, 5)}


def problem(kind: str, noise: float = 0.3):
    """A block, kept units, their channels, the weight that reads them, and targets."""
    generator = torch.Generator().manual_seed(1)
    block = BLOCKS[kind]
    units = torch.arange(0, block.num_units, 2)
    channels = torch.randn(
        50, len(units) * block.unit_size, generator=generator, dtype=torch.float64
    )
    weight = torch.randn(5, channels.shape[1], generator=generator, dtype=torch.float64)
    masks = 0.5 + torch.rand(len(units), generator=generator, dtype=torch.float64)
    target = (channels * masks.repeat_interleave(block.unit_size)) @ weight.T
    target += noise * torch.randn(50, 5, generator=generator, dtype=torch.float64)
    return block, units, channels, weight, target


def tall(block, units, channels, weight) -> np.ndarray:
    """A column for each unit: what it adds to every token and output feature."""
    columns = [
        (channels[:, part] @ weight[:, part].T).reshape(-1)
        for part in torch.arange(channels.shape[1]).split(block.unit_size)
    ]
    assert len(columns) == len(units)
    return torch.stack(columns, 1).numpy()


@pytest.mark.parametrize("kind", BLOCKS)
def test_masks_are_those_of_lsmr_on_all_tokens(kind):
    block, units, channels, weight, target = problem(kind)
    moments = CrossMoments(channels.shape[1], 5).update(channels, target)

    masks = tuned_masks(block, moments, weight, units)

    matrix = tall(block, units, channels, weight)
    rest = target.reshape(-1).numpy() - matrix.sum(1)
    np.testing.assert_allclose(masks, 1 + lsmr(matrix, rest, damp=1.0)[0], rtol=1e-6)
    # And those minimise the damped error, up to the tolerance at which LSMR stops.
    damped = np.vstack([matrix, np.eye(len(units))])
    dense = np.linalg.lstsq(damped, np.append(rest, np.zeros(len(units))), rcond=None)[0]
    np.testing.assert_allclose(masks, 1 + dense, rtol=1e-4)


def test_masks_out_of_range_are_discarded():
    block, units, channels, weight, target = problem("neurons", noise=0.0)
    moments = CrossMoments(channels.shape[1], 5).update(channels, 100 * target)
    assert tuned_masks(block, moments, weight, units) is None


def test_a_unit_that_says_nothing_keeps_its_mask():
    block, units, channels, weight, target = problem("neurons")
    channels[:, 1] = 0
    moments = CrossMoments(channels.shape[1], 5).update(channels, target)
    masks = tuned_masks(block, moments, weight, units)
    deviations = (masks - 1).abs()
    assert deviations[1] < 1e-9 < 1e-3 < deviations[[0, 2, 3, 4]].min()
