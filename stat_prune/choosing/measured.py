"""What is known of a block before a budget is spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from stat_prune.choosing.criteria import Candidates
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.blocks import Block


@dataclass(frozen=True)
class Measured:
    """One block.

    Attributes
    ----------
    candidates : Candidates
    output_energy : float
        As in `BlockStatistics`.
    statistics : BlockStatistics or None
        Where they are in memory.
    probe_error : float or None
        Relative error of the block's output at `Candidates.to_probe`, where the block has been
        folded there.
    weights : Tensor of shape (c,), float64, or None
        Effect on the model's output for each unit of the block's relative squared error, by
        candidate; None where that was not measured.
    """

    candidates: Candidates
    output_energy: float
    statistics: BlockStatistics | None = None
    probe_error: float | None = None
    weights: Tensor | None = None

    @property
    def block(self) -> Block:
        """The block."""
        return self.candidates.block

    def sensitivity(self, index: int) -> float | None:
        """The weight of a candidate, where it is known."""
        return None if self.weights is None else float(self.weights[index])


def weights_of(measured: Sequence[Measured]) -> list[Tensor]:
    """The effects of all blocks on the output, where they were measured."""
    return [one.weights for one in measured if one.weights is not None]
