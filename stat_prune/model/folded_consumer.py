"""What a pruned block's consumer becomes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stat_prune.model.blocks import Block
from stat_prune.model.input_correction import InputCorrection


@dataclass(frozen=True)
class FoldedConsumer:
    """A consumer that reads the kept channels only.

    Attributes
    ----------
    block : Block
    units : Tensor of shape (u,), int64
        Units kept, ascending.
    weight : Tensor of shape (d, k), float64
    bias : Tensor of shape (d,), float64, or None
        What to add to the dense bias, which counts as zero where the consumer has none; None where
        nothing changes.
    output_error : float
        ``||A W^T - (A_J W'^T + bias)||_F / ||A W^T||_F`` on the calibration set.
    readings : tuple of InputCorrection
        For the producers, where they are to make up for a changed input.
    """

    block: Block
    units: Tensor
    weight: Tensor
    bias: Tensor | None
    output_error: float
    readings: tuple[InputCorrection, ...] = ()

    def read_by(
        self, path: str, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a producer, told how its input has changed."""
        for one in self.readings:
            if path in one.paths:
                return one.applied(weight, bias)
        return weight, bias

    def scattered_weight(self) -> Tensor:
        """The weight over all channels of the dense block, zero for those that left; (d, m)."""
        channels = self.block.channels(self.units.to(self.weight.device))
        full = self.weight.new_zeros(len(self.weight), self.block.num_channels)
        full[:, channels] = self.weight
        return full
