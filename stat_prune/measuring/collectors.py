"""Forward pre-hooks on the consumers: activations stream into statistics and are forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.data.batching import token_mask
from stat_prune.errors import ModelError, NonFiniteActivationsError
from stat_prune.linalg import Moments, NonFiniteError
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import device_of, in_memory, input_device
from stat_prune.model.experts import routed_rows
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch, evaluating, model_inputs


def collect_moments(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Iterable[Batch],
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    precision: str = "float64",
) -> dict[str, Moments]:
    """Stream the consumers' inputs into moments, in one pass; padding is left out.

    Parameters
    ----------
    model : PreTrainedModel
    blocks : sequence of Block
    batches : iterable of mappings of str to Tensor
        Model inputs, with masks where there is padding.
    transform : callable, optional
        Applied to the rows of each sequence, of shape (n, m), before they are counted (a sketch).
    precision : {"float64", "float32"}
        Of the products, as for `Moments`.

    Returns
    -------
    dict of str to Moments
        By block name. Memory: one float64 m x m matrix a block, whatever the number of tokens.

    Raises
    ------
    NonFiniteActivationsError
        At the first NaN or Inf; the message names the block and the batch.
    ModelError
        If the forward pass calls some consumer never.
    """
    base = model.base_model
    device = input_device(base)
    collector = MomentsCollector(
        base, blocks, transform=transform, precision=precision, device=device
    )
    with evaluating(model), collector:
        for batch in batches:
            collector.expect(batch)
            base(**model_inputs(base, batch, device))
    return collector.moments


class MomentsCollector:
    """While entered, hooks count what the consumers of some blocks read.

    Parameters
    ----------
    base_model : nn.Module
    blocks : sequence of Block
    transform, precision
        As for `collect_moments`.
    device : torch.device
        Of the activations, but of modules with hooks that say theirs.

    Attributes
    ----------
    moments : dict of str to Moments
        By block name.
    """

    def __init__(
        self,
        base_model: nn.Module,
        blocks: Sequence[Block],
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        precision: str = "float64",
        device: torch.device,
    ) -> None:
        self._base, self._blocks, self._device = base_model, blocks, device
        self._transform = transform
        self._readers: dict[nn.Module, list[Block]] = {}
        self.moments: dict[str, Moments] = {}
        for block in blocks:
            module = projection(base_model, block.consumer).module
            self._readers.setdefault(module, []).append(block)
            self.moments[block.name] = Moments(
                block.num_channels, precision=precision, device=device_of(module) or device
            )
        self._masks: dict[str, Tensor | None] = {}
        self._batch: Batch = {}
        self._position = -1
        self._read: set[str] = set()

    def expect(self, batch: Batch) -> None:
        """Name the batch that the model runs on next."""
        self._position += 1
        self._batch = batch
        names = {block.mask for block in self._blocks}
        self._masks = {name: _mask_if_padded(batch, name, self._device) for name in names}

    def __enter__(self) -> MomentsCollector:
        self._handles = [
            module.register_forward_pre_hook(partial(self._hook, blocks))
            for module, blocks in self._readers.items()
        ]
        return self

    def __exit__(self, error: object, *_details: object) -> None:
        for handle in self._handles:
            handle.remove()
        unread = [one.consumer for one in self._blocks if one.name not in self._read]
        if error is None and self._position >= 0 and unread:
            raise ModelError(
                f"The forward pass never calls {unread[0]} ({len(unread)} such layers), so that "
                "what it reads is not known: attention or a feed-forward network of your own may "
                "use its weight directly. Let it call the layer, or leave it alone with "
                "ignore=[...]."
            )
        if error is None:
            for block in self._blocks:
                with self._naming(block):
                    _ = self.moments[block.name].mean  # the rows that are still pending overflow

    def _hook(self, blocks: Sequence[Block], module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # Only what experts read is not known without their weights.
        with in_memory(module) if blocks[0].expert_of else nullcontext():
            for block in blocks:
                self._see(block, args)

    def _see(self, block: Block, args: tuple[Tensor, ...]) -> None:
        self._read.add(block.name)
        mask = self._masks[block.mask]
        if mask is not None:
            mask = mask.to(args[0].device)
        if block.expert_of:
            self._count(block, routed_rows(self._base, block, args, mask))
        elif self._transform is None:
            self._count(block, token_rows(args[0], mask))
        else:
            kept = token_mask(self._batch, block.mask).to(args[0].device)
            for sequence, tokens in zip(by_token(args[0], kept), kept, strict=True):
                with self._naming(block):
                    rows = self._transform(sequence[tokens])
                self._count(block, rows)

    def _count(self, block: Block, rows: Tensor) -> None:
        with self._naming(block):
            self.moments[block.name].update(rows)

    @contextmanager
    def _naming(self, block: Block) -> Iterator[None]:
        """What is not finite is of this block, and comes from this batch or one before."""
        try:
            yield
        except NonFiniteError as error:
            raise NonFiniteActivationsError(
                f"{block.name}: the input of {block.consumer} in batch {self._position}: {error} "
                "Run the model in float32 or bfloat16, or remove the example."
            ) from error


def _mask_if_padded(batch: Batch, name: str, device: torch.device) -> Tensor | None:
    mask = token_mask(batch, name).to(device)
    return None if bool(mask.all()) else mask


def by_token(activations: Tensor, mask: Tensor) -> Tensor:
    """By sequence and token, of shape (batch, sequence, m); some layers join the two."""
    return activations.reshape(*mask.shape, activations.shape[-1])


def token_rows(activations: Tensor, mask: Tensor | None) -> Tensor:
    """Those of real tokens, of shape (n, m); not copied where all are."""
    rows = activations.flatten(end_dim=-2)  # of which none may have a channel
    return rows if mask is None or bool(mask.all()) else rows[mask.reshape(-1)]
