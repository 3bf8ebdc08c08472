"""Least squares for all layers of a pruned model, on its residual stream and the dense one's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.data.batching import token_mask
from stat_prune.families import transformer_layers
from stat_prune.measuring.collectors import token_rows
from stat_prune.measuring.objectives import reader_of
from stat_prune.measuring.residual_stream import EnteringLayer, ResidualStream
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import loaded
from stat_prune.model.folded_consumer import InputCorrection
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch, Objective, evaluating
from stat_prune.pipeline.solving_again.held_out_fit import HeldOutFit
from stat_prune.pipeline.solving_again.solution import Solution
from stat_prune.pipeline.solving_again.stream_readers import (
    correctable_producers,
    head_layers,
    head_reading_as_dense,
    reading_as_dense,
)
from stat_prune.surgery.layerwise import (
    EMBEDDED,
    States,
    embedding_noted,
    run_behind,
    stack_numbers,
)
from stat_prune.surgery.linear_layers import unshare


class StreamSolver:
    """Lets all layers make up for what the blocks before them have changed.

    Block by block: producers are told what they would have read in the dense model, as far as their
    input says so (`reading_as_dense`); last of all what reads the stream behind the blocks is. Of
    consumers the residual stream behind is compared with the dense model's:
    with kept inputs X of the pruned model and difference E = S_dense - S_pruned of the streams, the
    weight is moved by the D of least ``||X D - E||^2 + ridge ||diag(||X_:j||) D||^2``. So a large
    ridge leaves the one-pass solution. Of several ridges that is taken whose D leaves least of E on
    sequences held out; where none does better there than no D, the consumer stays.
    Consumers whose output the stream does not get as it is (`can_move`) stay as they are, and where
    nothing has changed outside of the blocks, so do those of blocks that are whole.

    Parameters
    ----------
    model : PreTrainedModel
        The dense model; unchanged.
    first : Solution
        Of one pass, layer by layer.
    batches : sequence of mappings of str to Tensor
        Model inputs to solve on. Their hidden states, six per token, and the inputs of one
        consumer are held in memory.
    held_out : sequence of mappings of str to Tensor
        To choose ridges with; without any, there is one of each kind.
    ridges, input_ridges : sequence of float
        Of consumers, and of what reads the stream.
    solves_head : bool
        Whether the whole model is run, for layers behind the last block.
    cut_from : PreTrainedModel, optional
        What is cut; it may differ from the dense model outside of the blocks, which make up for
        that, too.
    advance : callable
        Called with the block's name when it is done.

    Attributes
    ----------
    ridges : dict of str to float or None
        That were best, as in `SecondPass`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        first: Solution,
        batches: Sequence[Batch],
        held_out: Sequence[Batch] = (),
        *,
        ridges: Sequence[float],
        input_ridges: Sequence[float],
        solves_head: bool = True,
        cut_from: PreTrainedModel | None = None,
        advance: Callable[[str], None] = lambda _name: None,
    ) -> None:
        base = model if cut_from is None else cut_from
        self._model, self._pruned = model, first.cut_copy(base)
        self._shared, self._changed_outside = list(base.parameters()), base is not model
        self._folded = list(first.folded)
        self._narrowed = {one.block.name: one for one in first.narrowed}
        self._every, self._num_held_out = [*batches, *held_out], len(held_out)
        self._ridges, self._input_ridges = ridges, input_ridges
        self._solves_head, self._advance = solves_head, advance
        self._dense_states: list[States] = [{} for _ in self._every]
        self._states: list[States] = [{} for _ in self._every]
        self.ridges: dict[str, float | None] = {}

    def solve(self) -> Solution:
        """New weights and biases; the ``output_error`` of blocks stays that of the first pass."""
        blocks = [one.block for one in self._folded]
        changeable = [
            path
            for block in blocks
            for path in [block.consumer] * can_move(block) + correctable_producers(block)
        ]
        unshare(self._pruned.base_model, changeable, self._shared)
        # Where layers share weights, no layer is entered once: heads alone are solved for.
        stacks = [] if any(one.calls > 1 for one in blocks) else stack_numbers(self._model)
        with evaluating(self._model), evaluating(self._pruned):
            for layer, stack in enumerate(stacks):
                self._solve_layer(layer, stack)
            head = self._solve_head() if self._solves_head else []
        for one in self._folded:
            if one.block.name in self._narrowed:
                self._narrowed[one.block.name] = self._narrowed[one.block.name].told(one)
        return Solution(self._folded, head, list(self._narrowed.values()))

    def outputs_on_held_out(
        self, once: PreTrainedModel, objective: Objective
    ) -> Iterator[tuple[Batch, list[Any]]]:
        """What the dense model returns on each batch that is held out, one pass's, and this one's.

        Behind the last layer alone it is computed, where what that returns is known.
        """
        models = (self._model, once, self._pruned)
        readers = [reader_of(model, objective) for model in models]
        numbers = range(len(self._every) - self._num_held_out, len(self._every))
        with evaluating(self._model), evaluating(once), evaluating(self._pruned):
            for number in numbers:
                batch = self._every[number]
                known = (self._dense_states[number], States(), self._states[number])
                pairs = zip(readers, known, strict=True)
                yield batch, [run_behind(reader, batch, states) for reader, states in pairs]

    def _solve_layer(self, layer: int, stack: int) -> None:
        """The blocks of a layer, in the pruned model too; and what it then returns."""
        indices = [i for i, one in enumerate(self._folded) if one.block.layer == layer]
        blocks = [self._folded[i].block for i in indices]
        wanted = self._dense_streams(layer, stack, blocks)
        entering, outputs = EnteringLayer(self._pruned, layer, self._every, self._states), None
        for index in indices:
            block = self._folded[index].block
            self._tell_producers(index, entering, wanted)
            if self._is_moved(index):
                last = index == indices[-1]
                holder = None if last else _holder_of(self._pruned, block, blocks)
                returned = self._move(index, entering, wanted, last=last, holder=holder)
                if last:
                    outputs = returned
                elif holder is not None and returned is not None:
                    module = self._pruned.base_model.get_submodule(holder)
                    entering.known[module] = returned
            self._advance(block.name)
        outputs = outputs or [stream.output for stream in entering.streams([], whole=True)]
        for state, output in zip(self._states, outputs, strict=True):
            state[stack] = output

    def _dense_streams(
        self, layer: int, stack: int, blocks: Sequence[Block]
    ) -> list[ResidualStream]:
        """What the dense model has in a layer, batch by batch, and what it returns."""
        model, streams = self._model, []
        moved = [block for block in blocks if can_move(block)]
        readers = [path for block in blocks for path in correctable_producers(block)]
        for number, (batch, state) in enumerate(zip(self._every, self._dense_states, strict=True)):
            with embedding_noted(model, state):
                stream = ResidualStream(
                    model, layer, moved, batch, state, inputs=False, readers=readers
                )
            if EMBEDDED in state and not self._changed_outside:
                self._states[number][EMBEDDED] = state[EMBEDDED]
            state[stack] = stream.output
            streams.append(stream)
        return streams

    def _tell_producers(
        self, index: int, entering: EnteringLayer, wanted: Sequence[ResidualStream]
    ) -> None:
        self._folded[index], found = reading_as_dense(
            entering,
            self._folded[index],
            wanted,
            self._input_ridges,
            num_held_out=self._num_held_out,
        )
        self.ridges |= found
        for stream in wanted:  # the memory is needed
            for path in correctable_producers(self._folded[index].block):
                stream.read.pop(path, None)

    def _is_moved(self, index: int) -> bool:
        block, units = self._folded[index].block, self._folded[index].units
        cut = len(units) < block.num_units or block.name in self._narrowed
        return can_move(block) and (cut or self._changed_outside)

    def _move(
        self,
        index: int,
        entering: EnteringLayer,
        wanted: Sequence[ResidualStream],
        *,
        last: bool,
        holder: str | None,
    ) -> list[Any] | None:
        """Move a consumer; what its holder then returns on each batch, or the layer, if known.

        The stream moves by what the consumer does, so that neither need be computed again.
        """
        base, block = self._pruned.base_model, self._folded[index].block
        consumer = projection(base, block.consumer)
        shape = consumer.weight.shape
        fit = HeldOutFit(shape[1], shape[0], centred=consumer.bias is not None)
        seen = deque[ResidualStream]()
        streams = entering.streams([block], whole=last, holder=holder)
        for number, (found, dense) in enumerate(zip(streams, wanted, strict=True)):
            batch = self._every[number]
            mask = token_mask(batch, block.mask).to(found.inputs[block.name].device)
            noted = (found.inputs[block.name], found.after[block.name], dense.after.pop(block.name))
            inputs, after, wanted_after = (
                token_rows(one.to(mask.device), mask).float() for one in noted
            )
            fit.update(inputs, wanted_after - after, judges=self._judges(number))
            if last or holder is not None:
                seen.append(found)
        ridge, change, shift = fit.best(self._ridges)
        self.ridges[block.name] = ridge
        change = change.T
        with loaded(base, block.consumer, store=True) as consumer:
            before = consumer.weight.clone()
            consumer.weight.copy_(before.to(change) + change)
            rounded = consumer.weight - before
            if shift is not None:
                assert consumer.bias is not None
                consumer.bias.add_(shift.to(consumer.bias))
        self._note(index, change, shift)
        # One after another let go: the memory is needed.
        returned = [
            seen.popleft().returned_after(base, block, rounded, shift) for _ in range(len(seen))
        ]
        known = returned and all(one is not None for one in returned)
        return returned if known else None

    def _note(self, index: int, change: Tensor, shift: Tensor | None) -> None:
        """Remember how a consumer is moved."""
        block = self._folded[index].block
        narrowed = self._narrowed.get(block.name)
        if narrowed is not None and block.consumer in narrowed.layers:
            self._narrowed[block.name] = narrowed.moved(block.consumer, change, shift)
        else:
            self._folded[index] = self._folded[index].moved(change, shift)

    def _judges(self, number: int) -> bool:
        """Whether a batch is held out."""
        return number >= len(self._every) - self._num_held_out

    def _solve_head(self) -> list[InputCorrection]:
        """What reads the stream behind the last block, in the pruned model too."""
        unshare(self._pruned, head_layers(self._pruned), self._shared)
        head, found = head_reading_as_dense(
            (self._model, self._dense_states),
            (self._pruned, self._states),
            self._every,
            self._input_ridges,
            num_held_out=self._num_held_out,
        )
        self.ridges |= found
        return head


def can_move(block: Block) -> bool:
    """Whether least squares on the residual stream can solve for a consumer.

    Not where a norm or a gate stands between the two, nor for experts, whose tokens differ, nor
    where layers share weights and so have a stream for each of them.
    """
    return block.adds_to_stream and not block.expert_of and block.calls == 1


def _holder_of(model: PreTrainedModel, block: Block, blocks: Sequence[Block]) -> str | None:
    """Path of the smallest module around a block's layers, if it is none around others' as well."""
    paths = _paths_of(block)
    common = []
    for names in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    holder = ".".join(common)
    others = (path for one in blocks if one is not block for path in _paths_of(one))
    if holder in paths or any(path.startswith(f"{holder}.") for path in others):
        return None
    inside = transformer_layers(model)[block.layer].modules()
    next(inside)  # the layer itself
    module = model.base_model.get_submodule(holder)
    return holder if any(one is module for one in inside) else None


def _paths_of(block: Block) -> list[str]:
    return [block.consumer, *(one.path for one in block.producers)]
