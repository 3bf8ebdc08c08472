"""Variational information bottlenecks on what the consumers read (Dai et al. 2018, VIBNet)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection
from stat_prune.vib.config import VIBConfig

#: Where the masks are in a model under training, so that they are in its checkpoints.
MASKS = "vib_masks"

_TINY = 1e-8  # added to squares of means before their logarithm


class VIBMask(nn.Module):
    """Random masks ``z = mean + sigma * noise`` on the units of one block.

    There is one for each key/value head with its query heads, which leave together, or for each
    neuron. While it trains, every example of a batch has noise of its own; in evaluation mode a
    mask is its mean.

    Parameters
    ----------
    size : int
        Number of masks.
    width : int
        Consecutive channels under each.
    config : VIBConfig
        Its initial values.
    generator : torch.Generator
    whole : VIBMask of one mask, optional
        Over all of them: what the block computes is multiplied with it too.

    Attributes
    ----------
    mean, log_variance : Parameter of shape (size,), float32
    kept : Tensor of shape (size,), bool
        In evaluation mode the masks of all others are 0.
    """

    kept: Tensor

    def __init__(
        self,
        size: int,
        width: int,
        config: VIBConfig,
        generator: torch.Generator,
        whole: VIBMask | None = None,
    ) -> None:
        super().__init__()
        self.width, self.whole = width, whole

        def about(centre: float) -> nn.Parameter:
            noise = torch.randn(size, generator=generator)
            return nn.Parameter(centre + config.initial_spread * noise)

        self.mean = about(config.initial_mean)
        self.log_variance = about(config.initial_log_variance)
        self.register_buffer("kept", torch.ones(size, dtype=torch.bool))

    def log_alpha(self) -> Tensor:
        """``log sigma^2 - log mean^2``: below 0 a unit carries more signal than noise."""
        return self.log_variance - (self.mean.square() + _TINY).log()

    def kl(self) -> Tensor:
        """``1/2 sum log(1 + mean^2 / sigma^2)``, a bound on the information that passes, in nats.

        Dai et al. 2018, section 3: the divergence from the prior of the best variance.
        """
        own = functional.softplus(-self.log_alpha()).sum() / 2
        return own if self.whole is None else own + self.whole.kl()

    @property
    def num_masks(self) -> int:
        """How many `kl` is the sum over."""
        return len(self.mean) + (self.whole is not None)

    def keep_probability(self, slope: float) -> Tensor:
        """``sigmoid(-slope * log alpha)``: a smooth stand-in for ``log alpha < 0``."""
        own = torch.sigmoid(-slope * self.log_alpha())
        return own if self.whole is None else own * self.whole.keep_probability(slope)

    def means(self) -> Tensor:
        """What evaluation multiplies units with that stay; (size,)."""
        return self.mean if self.whole is None else self.mean * self.whole.mean

    def values(self, draws: int) -> Tensor:
        """The masks: so many draws in training, else one row of means; (draws, size) or (1, size).

        Means of units that are not kept are 0.
        """
        if not self.training:
            return (self.means() * self.kept)[None]
        noise = torch.randn(draws, len(self.mean), device=self.mean.device)
        own = self.mean + noise * (self.log_variance / 2).exp()
        return own if self.whole is None else own * self.whole.values(draws)

    def forward(self, activations: Tensor) -> Tensor:
        """Mask a consumer's input of shape (batch, sequence, m) or (tokens, m)."""
        # Where a layer joins batch and sequence, all examples share a draw.
        values = self.values(len(activations) if activations.ndim > 2 else 1)
        channels = values.repeat_interleave(self.width, dim=1).to(activations.dtype)
        return activations * channels.reshape(-1, *[1] * (activations.ndim - 2), channels.shape[1])


def make_masks(blocks: Sequence[Block], config: VIBConfig, *, seed: int) -> list[VIBMask]:
    """One `VIBMask` a block, in order; with one over it, where sublayers have masks and can go."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for block in blocks:
        whole = None
        if config.sublayers and block.removable:
            whole = VIBMask(1, block.num_channels, config, generator)
        width = block.units_per_group * block.unit_size
        masks.append(VIBMask(block.num_groups, width, config, generator, whole))
    return masks


@contextmanager
def masking(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    masks: Sequence[VIBMask],
    *others: nn.Module,
) -> Iterator[None]:
    """Every consumer reads its input through the masks of its block.

    Parameters
    ----------
    model : PreTrainedModel
        Has masks and multipliers as a submodule until this is left, so that a checkpoint of it has
        them.
    blocks : sequence of Block
    masks : sequence of VIBMask
    *others : Module
        What is trained with them: multipliers, a mask of hidden dimensions.
    """

    def hook_for(mask: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        return lambda _module, args: (mask(args[0]),)

    trained = nn.ModuleList([*masks, *others]).train(model.training)
    model.add_module(MASKS, trained.to(next(model.parameters()).device))
    handles = [
        projection(model.base_model, block.consumer).module.register_forward_pre_hook(hook_for(one))
        for block, one in zip(blocks, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        delattr(model, MASKS)
