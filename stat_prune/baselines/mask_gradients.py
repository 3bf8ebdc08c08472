"""Gradients of a loss with respect to masks on what the consumers read, example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stat_prune.errors import NonFiniteOutputsError
from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection


def mask_gradients(
    base_model: nn.Module,
    blocks: Sequence[Block],
    num_examples: int,
    losses: Callable[[], Tensor],
    *,
    by_channel: bool = False,
) -> dict[str, Tensor]:
    """Gradient of each example's loss with respect to its own masks, at masks of ones.

    Every example of a batch has a row of masks to itself, so one backward pass gives the gradients
    of all of them.

    Parameters
    ----------
    base_model : nn.Module
        In evaluation mode; where its parameters require no gradient, none is computed for them.
    blocks : sequence of Block
        Whose consumers read masked inputs.
    num_examples : int
        Rows of the batch.
    losses : callable
        Runs the model on the batch; returns the loss of each example, of shape (num_examples,).
    by_channel : bool
        A mask for each channel rather than for each unit.

    Returns
    -------
    dict of str to Tensor of shape (num_examples, u), float32
        By block name; u is the number of units, or of channels.

    Raises
    ------
    NonFiniteOutputsError
        If a loss or a gradient is not finite.
    """
    device = next(base_model.parameters()).device
    masks = {
        block.name: torch.ones(
            num_examples,
            block.num_channels if by_channel else block.num_units,
            device=device,
            requires_grad=True,
        )
        for block in blocks
    }
    with torch.enable_grad(), _masked(base_model, blocks, masks):
        loss = losses().sum()
        gradients = torch.autograd.grad(loss, list(masks.values()))
    for name, gradient in zip(["the model's output", *masks], [loss, *gradients], strict=True):
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteOutputsError(
                f"The loss on the calibration data, or its gradient, is not finite: NaN or Inf at "
                f"{name}. Run the model in float32 or bfloat16, or remove the examples."
            )
    return dict(zip(masks, gradients, strict=True))


@contextmanager
def _masked(
    base_model: nn.Module, blocks: Sequence[Block], masks: Mapping[str, Tensor]
) -> Iterator[None]:
    """Every consumer reads its input times the masks of its block."""

    def hook_for(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            channels = mask.repeat_interleave(args[0].shape[-1] // mask.shape[1], dim=1)
            return (args[0] * channels[:, None].to(args[0].dtype),)

        return hook

    handles = [
        projection(base_model, block.consumer).module.register_forward_pre_hook(
            hook_for(masks[block.name])
        )
        for block in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
