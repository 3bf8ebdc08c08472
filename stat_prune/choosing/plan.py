"""What is to be done to one block, and what it is expected to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stat_prune.model.folded_consumer import FoldedConsumer

#: Units and key/value heads to keep of each block, by its name.
Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class BlockPlan:
    """A decision, ready for surgery.

    Attributes
    ----------
    folded : FoldedConsumer
        Units kept, and the consumer's new weight and bias.
    activation_error : float
        Relative Frobenius error of the consumer's input.
    sensitivity : float or None
        Effect on the model's output for each unit of squared output error, if it was probed.
    error_curve : list of [int, float], or None
        As in `stat_prune.reporting.block_row.BlockRow`.
    """

    folded: FoldedConsumer
    activation_error: float
    sensitivity: float | None = None
    error_curve: list[list[float]] | None = None
