"""From the units that a published method keeps, and its weight, to a plan with its errors."""

from __future__ import annotations

from torch import Tensor

from stat_prune.choosing.correction import activation_error
from stat_prune.choosing.plan import BlockPlan
from stat_prune.measuring.statistics import BlockStatistics, quadratic
from stat_prune.model.folded_consumer import FoldedConsumer


def plan_of(statistics: BlockStatistics, units: Tensor, weight: Tensor | None = None) -> BlockPlan:
    """A plan whose errors are those on the dense model's activations.

    Parameters
    ----------
    statistics : BlockStatistics
        Of the dense model, not centred.
    units : Tensor of shape (u,), int64
        Ascending.
    weight : Tensor of shape (d, k), float64, optional
        Of the consumer; default: the columns that are kept, as they are.
    """
    block, dense = statistics.block, statistics.weight
    kept = block.channels(units.to(dense.device))
    weight = dense[:, kept] if weight is None else weight
    lost = dense.clone()
    lost[:, kept] -= weight
    error = quadratic(statistics.gram, lost)
    return BlockPlan(
        folded=FoldedConsumer(
            block=block,
            units=units,
            weight=weight,
            bias=None,
            output_error=relative_error(error, statistics.output_energy),
        ),
        activation_error=activation_error(statistics, units),
    )


def relative_error(lost: float, energy: float) -> float:
    """The root of a squared error to what it is of; 0 where rounding made it negative."""
    relative: float = (max(lost, 0.0) / max(energy, 1e-300)) ** 0.5
    return relative
