"""What the layers around the channels of a pruned block become."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from stat_prune.model.blocks import Block


@dataclass(frozen=True)
class InputCorrection:
    """What some layers read in the dense model, foretold from what they read in the pruned one.

    The inputs x of the pruned model stand for ``x + x D + s``, which is folded into the layers.

    Attributes
    ----------
    paths : tuple of str
        Of the linear layers, below the base model, which read the same.
    change : Tensor of shape (d, d), float32
        ``D``.
    shift : Tensor of shape (d,), float32, or None
        ``s``; None for layers without a bias.
    """

    paths: tuple[str, ...]
    change: Tensor
    shift: Tensor | None

    def applied(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``W (I + D)^T`` and ``b + W s``.

        Parameters
        ----------
        weight : Tensor of shape (out_features, d)
        bias : Tensor of shape (out_features,), or None

        Returns
        -------
        Tensor of shape (out_features, d), float32 or wider
        Tensor of shape (out_features,), or None
        """
        change = self.change.to(weight.device)
        weight = weight.detach().to(change.dtype)
        if bias is not None and self.shift is not None:
            bias = bias.detach().to(change.dtype) + weight @ self.shift.to(weight.device)
        return weight + weight @ change.T, bias


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

    def moved(self, change: Tensor, shift: Tensor | None) -> FoldedConsumer:
        """With a change of the weight, (d, k), and of the bias, (d,)."""
        bias = self.bias
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return replace(self, weight=self.weight + change, bias=bias)

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
