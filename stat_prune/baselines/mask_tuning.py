"""Real numbers for the masks of kept units: least squares towards the dense model's sublayers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import lsmr
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.baselines.layer_inputs import (
    LayerwiseModel,
    dense_sums,
    mask_block,
    reconstruction_moments,
)
from stat_prune.choosing.plan import BlockPlan
from stat_prune.choosing.planned import plan_of
from stat_prune.families import transformer_layers
from stat_prune.linalg import CrossMoments
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.statistics import BlockStatistics, statistics_of
from stat_prune.model.blocks import Block
from stat_prune.pipeline.run import Run

#: Of the deviation of the masks from one.
DAMPING = 1.0
#: Masks beyond this, in absolute value, are a sign of an ill-posed problem.
MAX_MASK = 10.0


def dense_statistics(run: Run) -> list[BlockStatistics]:
    """What the consumers of all blocks read in the dense model, not centred."""
    with run.stage("collect"):
        moments = collect_moments(run.model, run.blocks, run.tracked(run.calibration.batches))
        return statistics_of(run.model.base_model, run.blocks, moments, absorb_mean=False)


def tuned_plans(
    run: Run,
    statistics: Sequence[BlockStatistics],
    kept: Mapping[str, Tensor],
    pruned: PreTrainedModel | None,
) -> list[BlockPlan]:
    """Keep these units, their masks tuned.

    Parameters
    ----------
    run : Run
    statistics : sequence of BlockStatistics
        Of `dense_statistics`.
    kept : mapping of str to Tensor of shape (u,), int64
        Units, by block name.
    pruned : PreTrainedModel or None
        A copy of the run's model, which computes like the pruned one afterwards; None for masks of
        one.
    """
    weights: dict[str, Tensor] = {}
    if pruned is not None:
        with run.stage("tune masks"):
            weights = _tuned_weights(run, pruned, statistics, kept)
    with gathered_numerical_warnings("measuring the errors of blocks"):
        return [
            plan_of(one, kept[one.block.name], weights.get(one.block.name)) for one in statistics
        ]


def _tuned_weights(
    run: Run,
    pruned: PreTrainedModel,
    statistics: Sequence[BlockStatistics],
    kept: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The consumers' weights times tuned masks; (d, k), by name of the blocks that were tuned.

    From the first sublayer that lost units on; each reads what those below make of it with their
    own masks tuned. Stops at the first sublayer whose masks leave the accepted range.
    """
    weights: dict[str, Tensor] = {}
    dense, model = (LayerwiseModel(one, run.calibration.batches) for one in (run.model, pruned))
    for layer in run.tracked(range(len(transformer_layers(run.model)))):
        members = [one for one in statistics if one.block.layer == layer]
        sums = dense_sums(dense, [one.block for one in members])
        for one in members:
            block, units = one.block, kept[one.block.name]
            if not weights and len(units) == block.num_units:
                continue
            weight = one.weight[:, block.channels(units.to(one.weight.device))]
            moments = reconstruction_moments(model, block, sums[block.name], units)
            masks = tuned_masks(block, moments, weight, units)
            if masks is None:
                return weights
            weights[block.name] = weight * masks.repeat_interleave(block.unit_size)
            mask_block(pruned, block, units, weights[block.name])
        model.advance()
    return weights


def tuned_masks(
    block: Block, moments: CrossMoments, weight: Tensor, units: Tensor
) -> Tensor | None:
    """Masks that bring a sublayer closest to what it should add (Kwon et al. 2022, section 3.4).

    Minimises ``||sum_u m_u A_u W_u^T - Y||^2 + damp^2 ||m - 1||^2``, with ``A_u`` the channels of
    unit u and ``W_u`` the consumer's columns for them, by LSMR (Fong & Saunders 2011). All that it
    needs of the tall matrix, whose columns are the ``A_u W_u^T``, is in the moments of A and Y.

    Parameters
    ----------
    block : Block
    moments : CrossMoments
        Of the channels of `units` (A) and the targets (Y).
    weight : Tensor of shape (d, k), float64
        The consumer's columns for these channels.
    units : Tensor of shape (u,), int64

    Returns
    -------
    Tensor of shape (u,), float64, or None
        None where a mask lies outside [-10, 10]: then the paper discards the masks of this sublayer
        and stops tuning.
    """
    gram, cross, energies = moments.normal_equations()
    size, count = block.unit_size, len(units)
    by_channel = gram * (weight.T @ weight)
    normal = by_channel.reshape(count, size, count, size).sum((1, 3))
    right = (cross * weight.T).sum(1).reshape(count, size).sum(1)
    # In terms of the deviation r = m - 1, the right-hand side is Y less what masks of one give.
    ones = normal.sum(1)
    energy = float(energies.sum() - 2 * right.sum() + ones.sum())
    masks = 1 + _least_squares(normal, right - ones, energy)
    return masks if bool((masks.abs() <= MAX_MASK).all()) else None


def _least_squares(normal: Tensor, right: Tensor, energy: float) -> Tensor:
    """LSMR on a small matrix with the same normal equations and the same norm of its right side.

    LSMR's iterates depend on nothing else.
    """
    values, vectors = torch.linalg.eigh(normal)
    significant = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    roots, basis = values[significant].sqrt(), vectors[:, significant]
    matrix = roots[:, None] * basis.T
    rhs = (basis.T @ right) / roots
    rest = max(energy - float(rhs.square().sum()), 0.0) ** 0.5
    matrix = torch.cat([matrix, matrix.new_zeros(1, matrix.shape[1])])
    rhs = torch.cat([rhs, rhs.new_tensor([rest])])
    solution = lsmr(matrix.cpu().numpy(), rhs.cpu().numpy(), damp=DAMPING)[0]
    return torch.from_numpy(np.asarray(solution, dtype=np.float64)).to(normal.device)
