"""The residual stream behind the consumers of one layer, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch, stubbed
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

    Parameters
    ----------
    model : PreTrainedModel
    layer : int
    blocks : sequence of Block
    batch : mapping of str to Tensor
    states : dict of int to object
        As for `run_layer`.
    whole : bool
        Whether the layer is computed to its end once everything is seen.
    inputs : bool
        Whether the inputs of the consumers are kept.
    readers : sequence of str
        Paths of the layers whose inputs are.
    holder : str, optional
        Path of a module inside of the layer, around one block's layers: what it returns is kept.
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
        holder: str | None = None,
    ) -> None:
        base = model.base_model
        self.inputs: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        self.read: dict[str, list[Tensor]] = {}
        self._made: dict[str, Tensor] = {}
        self._held: list[Any] = []
        self._asked = None if whole else len(readers) + len(blocks) + (holder is not None)
        with ExitStack() as stack:
            for path in readers:
                reader = base.get_submodule(path)
                stack.callback(reader.register_forward_pre_hook(self._reading(path)).remove)
            for block in blocks:
                if inputs:
                    consumer = projection(base, block.consumer).module
                    hook = self._consuming(block, makes=holder is not None)
                    stack.callback(consumer.register_forward_hook(hook).remove)
                if block.stream_after is not None:
                    behind = base.get_submodule(block.stream_after)
                    stack.callback(behind.register_forward_pre_hook(self._passing(block)).remove)
            if holder is not None:
                held = base.get_submodule(holder)
                stack.callback(held.register_forward_hook(self._holding).remove)
            self.output = run_layer(model, layer, batch, states)
        if self.output is not None:
            for block in blocks:
                self.after.setdefault(block.name, _first(self.output))

    def returned_after(
        self, base: nn.Module, block: Block, change: Tensor, shift: Tensor | None
    ) -> Any:
        """What the holder returns once a consumer in it has changed; without one, the layer.

        That is known where it is the consumer's output, or the stream behind, as it is or normed,
        and no other consumer stands between. Else None; and where what is returned beside it is
        larger, such as attention weights: computing is cheaper than to remember that.

        Parameters
        ----------
        base : Module
        block : Block
        change : Tensor of shape (hidden, channels)
            Of the consumer's weight.
        shift : Tensor of shape (hidden,) or None
            Of its bias.
        """
        whole = self._held[0] if self._held else self.output
        if whole is None or len(self._held) > 1:
            return None
        returned, inputs = _first(whole), self.inputs[block.name]
        after, made = self.after[block.name], self._made.get(block.name)

        def behind(stream: Tensor) -> Tensor:
            if block.stream_after is None:
                return stream
            found: Tensor = base.get_submodule(block.stream_after)(stream)
            return found

        is_made = made is not None and _equal(made, returned)
        if not is_made and not _equal(behind(after), returned):
            return None
        moved = linear(inputs, change.to(inputs), None if shift is None else shift.to(inputs))
        if is_made:
            output = returned + moved.reshape(returned.shape)
        else:
            output = behind(after + moved.reshape(after.shape)).reshape(returned.shape)
        return (output, *whole[1:]) if isinstance(whole, tuple) else output

    def _see(self) -> None:
        """Stop where all that was asked for is seen."""
        if len(self.read) + len(self.after) + len(self._held) == self._asked:
            raise SeenEnough

    def _reading(self, path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.read.setdefault(path, []).append(args[0])
            self._see()

        return hook

    def _consuming(self, block: Block, *, makes: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs[block.name] = args[0]
            if makes:
                self._made[block.name] = output

        return hook

    def _passing(self, block: Block) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.after[block.name] = args[0]
            self._see()

        return hook

    def _holding(self, _module: nn.Module, _args: Any, output: Any) -> None:
        beside = output[1:] if isinstance(output, tuple) else ()
        size = _first(output).numel()
        large = any(isinstance(one, Tensor) and one.numel() > size for one in beside)
        self._held.append(None if large else output)
        self._see()


def _first(returned: Any) -> Tensor:
    first: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return first


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether they are, however batch and sequence are joined."""
    return one.numel() == other.numel() and torch.equal(one.reshape(other.shape), other)


@dataclass(frozen=True)
class EnteringLayer:
    """What comes into a layer of a model.

    Attributes
    ----------
    model : PreTrainedModel
    layer : int
    batches : sequence of mappings of str to Tensor
    states : sequence of dict
        As for `run_layer`, batch by batch.
    known : dict of Module to sequence of object
        What modules inside of the layer return, batch by batch: they are not computed.
    """

    model: PreTrainedModel
    layer: int
    batches: Sequence[Batch]
    states: Sequence[States]
    known: dict[nn.Module, Sequence[Any]] = field(default_factory=dict)

    def streams(
        self,
        blocks: Sequence[Block],
        *,
        whole: bool,
        readers: Sequence[str] = (),
        holder: str | None = None,
    ) -> Iterator[ResidualStream]:
        """The layer on one batch after the other."""
        for number, (batch, state) in enumerate(zip(self.batches, self.states, strict=True)):
            answers = {
                module: partial(returned.__getitem__, number)
                for module, returned in self.known.items()
            }
            with stubbed(answers):
                stream = ResidualStream(
                    self.model,
                    self.layer,
                    blocks,
                    batch,
                    state,
                    whole=whole,
                    readers=readers,
                    holder=holder,
                )
            yield stream
