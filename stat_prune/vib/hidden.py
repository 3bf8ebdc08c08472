"""One bottleneck that all layers share, on the hidden dimensions of the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.vib.masks import VIBMask
from stat_prune.vib.stream import norms, outer_linears


class HiddenMask(VIBMask):
    """Masks on hidden dimensions, the same in all layers: one draw an example and forward pass.

    A norm under masks gives ``z * norm(x)``, and its mean and variance are those of the dimensions
    that stay: every dimension counts by the probability that it does, and in evaluation mode not at
    all once it has left. So does the norm of the model that is cut, whose hidden size is smaller.
    """

    _drawn: Tensor | None = None

    def forget(self, *_args: Any) -> None:
        """Draw anew at the next use."""
        self._drawn = None

    def drawn(self, draws: int) -> Tensor:
        """The masks of this forward pass; (draws, size) or (1, size)."""
        if self._drawn is None:
            self._drawn = self.values(draws)
        return self._drawn

    def weights(self, slope: float) -> Tensor:
        """How much each dimension counts; (size,)."""
        return self.keep_probability(slope) if self.training else self.kept.float()

    def norm(self, norm: Any, stream: Tensor, slope: float) -> Tensor:
        """What a LayerNorm or RMSNorm makes of the stream; (batch, ..., size)."""
        weights, wide = self.weights(slope), stream.float()
        share = weights / weights.sum()
        if isinstance(norm, nn.LayerNorm):
            wide = wide - (wide * share).sum(-1, keepdim=True)
            epsilon = norm.eps
        else:
            epsilon = norm.variance_epsilon
        variance = (wide.square() * share).sum(-1, keepdim=True)
        normed: Tensor = wide * torch.rsqrt(variance + epsilon) * norm.weight
        if getattr(norm, "bias", None) is not None:
            normed = normed + norm.bias
        values = self.drawn(len(stream))
        values = values.reshape(-1, *[1] * (stream.ndim - 2), values.shape[-1])
        return (normed * values).to(stream.dtype)


@contextmanager
def hiding(model: PreTrainedModel, mask: HiddenMask, slope: float) -> Iterator[None]:
    """Every norm of the stream is masked; layers of pooler and head read what stays.

    Parameters
    ----------
    model : PreTrainedModel
        Of `stat_prune.vib.stream.FAMILIES`.
    mask : HiddenMask
    slope : float
        Of the probability to stay, as in the expected cost.
    """

    def masked(norm: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        return mask.norm(norm, args[0], slope)

    def read(_linear: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return ((args[0] * mask.weights(slope)).to(args[0].dtype),)

    mask.to(next(model.parameters()).device)
    handles = [model.register_forward_pre_hook(mask.forget)]
    handles += [norm.register_forward_hook(masked) for norm in norms(model).values()]
    handles += [
        linear.register_forward_pre_hook(read)
        for linear in outer_linears(model).values()
        if linear.in_features == len(mask.mean)
    ]
    try:
        yield
    finally:
        mask.forget()
        for handle in handles:
            handle.remove()
