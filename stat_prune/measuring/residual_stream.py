"""The residual stream behind the consumers of one layer, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch
from stat_prune.surgery.layerwise import SeenEnough, States, run_layer


class ResidualStream:
    """One layer on one batch, and the residual stream behind each of its consumers.

    Attributes
    ----------
    inputs : dict of str to Tensor of shape (batch, sequence, channels)
        Of the consumers, by block name, where they are asked for; batch and sequence may be joined.
    after : dict of str to Tensor of shape (batch, sequence, hidden)
        The stream with their outputs added; likewise.
    read : dict of str to list of Tensor of shape (batch, sequence, input)
        By the path of a layer that was asked for, its input each time that it was called.
    output : object
        Whatever the layer returned: the state for the next. None where all is seen before it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layer: int,
        blocks: Sequence[Block],
        batch: Batch,
        states: States,
        *,
        whole: bool = True,
        inputs: bool = True,
        readers: Sequence[str] = (),
    ) -> None:
        base = model.base_model
        self.inputs: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        self.read: dict[str, list[Tensor]] = {}
        with ExitStack() as stack:
            for path in readers:
                hook = self._reading(path, None if whole or blocks else len(readers))
                stack.callback(base.get_submodule(path).register_forward_pre_hook(hook).remove)
            for block in blocks:
                if inputs:
                    stack.callback(
                        projection(base, block.consumer)
                        .module.register_forward_pre_hook(self._noting(self.inputs, block))
                        .remove
                    )
                if block.stream_after is not None:
                    stack.callback(
                        base.get_submodule(block.stream_after)
                        .register_forward_pre_hook(self._noting(self.after, block, last=not whole))
                        .remove
                    )
            self.output = run_layer(model, layer, batch, states)
        if self.output is not None:
            stream = self.output[0] if isinstance(self.output, tuple) else self.output
            for block in blocks:
                self.after.setdefault(block.name, stream)

    def output_after(
        self, base: nn.Module, block: Block, change: Tensor, shift: Tensor | None
    ) -> Any:
        """What the layer returns once a consumer behind which it has no other has changed.

        None where it does not return the stream as it is, or normed.

        Parameters
        ----------
        base : Module
        block : Block
        change : Tensor of shape (hidden, channels)
            Of the consumer's weight.
        shift : Tensor of shape (hidden,) or None
            Of its bias.
        """
        returned = self.output[0] if isinstance(self.output, tuple) else self.output
        after, inputs = self.after[block.name], self.inputs[block.name]

        def behind(stream: Tensor) -> Tensor:
            if block.stream_after is None:
                return stream
            found: Tensor = base.get_submodule(block.stream_after)(stream)
            return found

        if not torch.equal(behind(after), returned):
            return None
        moved = linear(inputs, change.to(inputs), None if shift is None else shift.to(inputs))
        output = behind(after + moved.reshape(after.shape))
        return (output, *self.output[1:]) if isinstance(self.output, tuple) else output

    def _reading(self, path: str, enough: int | None) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.read.setdefault(path, []).append(args[0])
            if len(self.read) == enough:
                raise SeenEnough

        return hook

    @staticmethod
    def _noting(
        notes: dict[str, Tensor], block: Block, *, last: bool = False
    ) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            notes[block.name] = args[0]
            if last:
                raise SeenEnough

        return hook


class EnteringLayer(NamedTuple):
    """What comes into a layer of a model.

    Attributes
    ----------
    model : PreTrainedModel
    layer : int
    batches : sequence of mappings of str to Tensor
    states : sequence of dict
    """

    model: PreTrainedModel
    layer: int
    batches: Sequence[Batch]
    states: Sequence[States]

    def streams(
        self, blocks: Sequence[Block], *, whole: bool, readers: Sequence[str] = ()
    ) -> Iterator[ResidualStream]:
        """The layer on one batch after the other."""
        for batch, state in zip(self.batches, self.states, strict=True):
            yield ResidualStream(
                self.model, self.layer, blocks, batch, state, whole=whole, readers=readers
            )
