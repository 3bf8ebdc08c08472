"""Models run one layer at a time: what a sublayer adds, dense and pruned, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.data.batching import token_mask
from stat_prune.linalg import CrossMoments
from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch
from stat_prune.surgery.layerwise import SeenEnough, States, run_layer, run_rest


class LayerwiseModel:
    """A model that stands before one of its layers: what enters that layer is kept.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode.
    batches : sequence of mappings of str to Tensor

    Attributes
    ----------
    layer : int
        Index of the layer that comes next.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model, self.batches = model, batches
        self.layer = 0
        self._entering: list[States] = [{} for _ in batches]

    def finish(self, position: int) -> Any:
        """The model's output for a batch, by its number, from this layer on."""
        return run_rest(self.model, self.layer, self.batches[position], self._entering[position])

    def run_layer(self, position: int) -> Any:
        """Run this layer alone on a batch, and return what it does."""
        return run_layer(self.model, self.layer, self.batches[position], self._entering[position])

    def advance(self) -> None:
        """Go to the next layer."""
        self._entering = [{0: self.run_layer(position)} for position in range(len(self.batches))]
        self.layer += 1


def dense_sums(dense: LayerwiseModel, blocks: Iterable[Block]) -> dict[str, list[Tensor]]:
    """What each sublayer of a layer leaves before its normalisation; goes to the next layer.

    Parameters
    ----------
    dense : LayerwiseModel
    blocks : iterable of Block
        Of the layer that comes next.

    Returns
    -------
    dict of str to list of Tensor of shape (batch, sequence, d)
        ``x + layer(x)`` by block name, one tensor a batch.
    """
    base = dense.model.base_model
    sums: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
    with _entering(base, blocks) as entered, ExitStack() as hooks:
        for block in blocks:

            def leave(
                _module: nn.Module, _args: Any, output: Tensor, name: str = block.name
            ) -> None:
                sums[name].append(entered.pop(name) + output)

            consumer = projection(base, block.consumer).module
            hooks.enter_context(consumer.register_forward_hook(leave))
        dense.advance()
    return sums


def reconstruction_moments(
    pruned: LayerwiseModel, block: Block, sums: Sequence[Tensor], units: Tensor
) -> CrossMoments:
    """Moments of kept channels in a pruned model, and of what the consumer should make of them.

    The target is the dense ``x' + layer(x')`` less the pruned model's own ``x`` and the consumer's
    bias: what brings the two together before the normalisation (Kwon et al. 2022, section 3.4).
    Padding is left out.

    Parameters
    ----------
    pruned : LayerwiseModel
        Standing before the block's layer.
    block : Block
    sums : sequence of Tensor of shape (batch, sequence, d)
        Of `dense_sums`, one a batch.
    units : Tensor of shape (u,), int64

    Returns
    -------
    CrossMoments
        Of k features (channels) and d targets.
    """
    base = pruned.model.base_model
    device = next(base.parameters()).device
    kept = block.channels(units.to(device))
    bias = projection(base, block.consumer).bias
    moments = CrossMoments(len(kept), block.output_size, device=device)
    read: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        read.append(args[0])
        raise SeenEnough

    consumer = projection(base, block.consumer).module
    with _entering(base, [block]) as entered, consumer.register_forward_pre_hook(stop):
        for position, batch in enumerate(pruned.batches):
            mask = token_mask(batch).to(device)
            pruned.run_layer(position)
            target = sums[position] - entered.pop(block.name)
            if bias is not None:
                target = target - bias
            moments.update(read.pop()[mask][:, kept], target[mask])
    return moments


def mask_block(model: PreTrainedModel, block: Block, units: Tensor, weight: Tensor) -> None:
    """Let a model compute as if a block were pruned, in place: dropped channels weigh nothing."""
    full = projection(model.base_model, block.consumer).weight
    with torch.no_grad():
        full.zero_()
        full[:, block.channels(units.to(full.device))] = weight.to(full)


@contextmanager
def _entering(base_model: nn.Module, blocks: Iterable[Block]) -> Iterator[dict[str, Tensor]]:
    """What enters each sublayer, by block name, as soon as it has.

    In the encoders that normalise after each sublayer, which are all that are supported, the
    producers read what the residual connection carries.
    """
    entered: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for block in blocks:

            def enter(_module: nn.Module, args: tuple[Tensor, ...], name: str = block.name) -> None:
                entered[name] = args[0]

            producer = projection(base_model, block.producers[0].path).module
            hooks.enter_context(producer.register_forward_pre_hook(enter))
        yield entered
