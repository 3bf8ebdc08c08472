"""How layers read a stream that is no longer the dense model's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
