"""The correction again, on what the pruned network itself computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.budget.exploring import is_better
from stat_prune.data.batching import token_mask
from stat_prune.data.calibration import CalibrationSet
from stat_prune.measuring.collectors import token_rows
from stat_prune.measuring.objectives import reader_of
from stat_prune.measuring.residual_stream import EnteringLayer, ResidualStream
from stat_prune.measuring.sensitivity import distances_by_sequence
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import loaded
from stat_prune.model.folded_consumer import FoldedConsumer, InputCorrection
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch, Objective, evaluating
from stat_prune.pipeline.solving_again.held_out_fit import HeldOutFit
from stat_prune.pipeline.solving_again.stream_readers import (
    correctable_producers,
    head_layers,
    head_reading_as_dense,
    reading_as_dense,
)
from stat_prune.surgery.layerwise import States, stack_numbers
from stat_prune.surgery.linear_layers import unshare
from stat_prune.surgery.narrowing import NarrowedHeads, narrowed_copy

#: Ridges towards the one-pass solution of consumers, relative to each channel's squared norm.
RIDGES = (1.0, 0.3)

#: And towards no change of what producers read.
INPUT_RIDGES = (10.0, 1.0, 0.1, 0.01)

#: One calibration sequence in so many is held out, to choose with; fewer allow no second pass.
HELD_OUT = 8

#: Standard errors of their difference by which the simpler of two models has to be nearer, on
#: sequences held out, to be taken.
SURE = 2.0

#: Numbers of hidden states that a second pass holds which nobody asked for, about: on so many
#: tokens as give them.
MOST_STATES = 2**28


@dataclass(frozen=True)
class Solution:
    """What all that is corrected becomes.

    Attributes
    ----------
    folded : sequence of FoldedConsumer
    head : sequence of InputCorrection
        For layers behind the blocks, by their paths below the model.
    narrowed : sequence of NarrowedHeads
        Told what `folded` says of the producers.
    """

    folded: Sequence[FoldedConsumer]
    head: Sequence[InputCorrection] = ()
    narrowed: Sequence[NarrowedHeads] = ()

    def cut_copy(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of a model that is cut so, to be measured."""
        return narrowed_copy(model, self.folded, self.narrowed, self.head)


@dataclass(frozen=True)
class SecondPass:
    """What became of the correction when it was solved again.

    Attributes
    ----------
    taken : bool
        Whether the second pass's solution was; else the first pass's was clearly better.
    distances : dict of str to float
        The objective on held-out calibration sequences, of both passes.
    ridges : dict of str to float or None
        The ridge that was best on held-out sequences, by the block of a consumer, and by the path
        of the first of the layers that read the same; None where weights stayed.
    """

    taken: bool
    distances: dict[str, float]
    ridges: dict[str, float | None]

    @property
    def distance(self) -> float:
        """Of what was taken, on held-out sequences."""
        return self.distances["second pass" if self.taken else "first pass"]


def with_held_out(
    calibration: CalibrationSet, *, seed: int
) -> tuple[CalibrationSet, CalibrationSet]:
    """What is solved on, and what is held out: drawn beside it, or a part; all, of very few."""
    if calibration.held_out is not None:
        return calibration, calibration.held_out
    count = calibration.num_samples // HELD_OUT
    return calibration.split(count, seed=seed) if count else (calibration, calibration)


def best_pass(
    model: PreTrainedModel,
    first: Solution,
    calibration: CalibrationSet,
    objective: Objective,
    *,
    seed: int,
    cut_from: PreTrainedModel | None = None,
    advance: Callable[[str], None] = lambda _name: None,
) -> tuple[Solution, SecondPass]:
    """The correction of a second pass, or the first where held-out sequences speak against it.

    They do by two standard errors of the difference: a few sequences of one value each scatter by
    more than the two passes differ, and the second is better nearly everywhere.

    Parameters
    ----------
    model : PreTrainedModel
        The dense model.
    first : Solution
        Of one pass.
    calibration : CalibrationSet
        What is held out beside it is chosen with; without any, one sequence in `HELD_OUT` is, and
        not solved on.
    objective : callable
        Distance of outputs.
    seed : int
        Decides which sequences are held out.
    cut_from : PreTrainedModel, optional
        What is cut, where that differs from the dense model outside of the blocks.
    advance : callable
        Called for every block.
    """
    base = model if cut_from is None else cut_from
    solved_on, held_out = with_held_out(calibration, seed=seed)
    again, ridges = restream(
        model,
        first,
        solved_on.batches,
        held_out.batches,
        ridges=RIDGES,
        input_ridges=INPUT_RIDGES,
        solves_head=reader_of(model, objective) is model,
        cut_from=cut_from,
        advance=advance,
    )
    solutions = {"first pass": first, "second pass": again}
    copies = {name: one.cut_copy(base) for name, one in solutions.items()}
    by_sequence = distances_by_sequence(model, copies, held_out.batches, objective)
    taken = not is_better(*by_sequence.values(), errors=SURE)
    distances = {name: float(found.mean()) for name, found in by_sequence.items()}
    return solutions["second pass" if taken else "first pass"], SecondPass(taken, distances, ridges)


def restream(
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
) -> tuple[Solution, dict[str, float | None]]:
    """Let all layers make up for what the blocks before them have changed.

    Block by block: producers are told what they would have read in the dense model, as far as their
    input says so (`reading_as_dense`); last of all what reads the stream behind the blocks is. Of
    consumers the residual stream behind is compared with the dense model's:
    with kept inputs X of the pruned model and difference E = S_dense - S_pruned of the streams, the
    weight is moved by the D of least ``||X D - E||^2 + ridge ||diag(||X_:j||) D||^2``. So a large
    ridge leaves the one-pass solution. Of several ridges that is taken whose D leaves least of E on
    sequences held out; where none does better there than no D, the consumer stays.
    Consumers whose output the stream does not get as it is (`can_move`) stay as they are.

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

    Returns
    -------
    Solution
        With new weights and biases; ``output_error`` stays that of the first pass. Where nothing
        has changed outside of the blocks, consumers of those that are whole stay as they are.
    dict of str to float or None
        As in `SecondPass`.
    """
    results, taken = list(first.folded), dict[str, float | None]()
    narrowed = {one.block.name: one for one in first.narrowed}
    base = model if cut_from is None else cut_from
    pruned, changed_outside = first.cut_copy(base), base is not model
    changeable = [
        path
        for one in results
        for path in [one.block.consumer] * can_move(one.block) + correctable_producers(one.block)
    ]
    unshare(pruned.base_model, changeable, base.parameters())
    by_layer: dict[int, list[int]] = {}
    for index, one in enumerate(results):
        by_layer.setdefault(one.block.layer, []).append(index)
    every = [*batches, *held_out]
    # Where layers share weights, no layer is entered once: heads alone are solved for.
    numbers = [] if any(one.block.calls > 1 for one in results) else stack_numbers(model)
    with evaluating(model), evaluating(pruned):
        dense_states: list[States] = [{} for _ in every]
        states: list[States] = [{} for _ in every]
        for layer, stack in enumerate(numbers):
            indices = by_layer.get(layer, [])
            blocks = [results[i].block for i in indices if can_move(results[i].block)]
            readers = [path for i in indices for path in correctable_producers(results[i].block)]
            wanted = [
                ResidualStream(model, layer, blocks, batch, state, inputs=False, readers=readers)
                for batch, state in zip(every, dense_states, strict=True)
            ]
            entering, outputs = EnteringLayer(pruned, layer, every, states), None
            for index in indices:
                block, units = results[index].block, results[index].units
                results[index], found = reading_as_dense(
                    entering, results[index], wanted, input_ridges, num_held_out=len(held_out)
                )
                taken |= found
                cut = len(units) < block.num_units or block.name in narrowed
                if can_move(block) and (cut or changed_outside):
                    move, taken[block.name], outputs = _moved(
                        entering,
                        block,
                        wanted,
                        ridges,
                        num_held_out=len(held_out),
                        last=index == indices[-1],
                    )
                    if block.name in narrowed and block.consumer in narrowed[block.name].layers:
                        narrowed[block.name] = narrowed[block.name].moved(block.consumer, *move)
                    else:
                        results[index] = results[index].moved(*move)
                advance(block.name)
            outputs = outputs or [stream.output for stream in entering.streams([], whole=True)]
            for state, stream in zip(dense_states, wanted, strict=True):
                state[stack] = stream.output
            for state, output in zip(states, outputs, strict=True):
                state[stack] = output
        head: list[InputCorrection] = []
        if solves_head:
            unshare(pruned, head_layers(pruned), base.parameters())
            head, found = head_reading_as_dense(
                (model, dense_states),
                (pruned, states),
                every,
                input_ridges,
                num_held_out=len(held_out),
            )
            taken |= found
    for one in results:
        if one.block.name in narrowed:
            narrowed[one.block.name] = narrowed[one.block.name].told(one)
    return Solution(results, head, list(narrowed.values())), taken


def states_of_token(blocks: Sequence[Block]) -> int:
    """Numbers that are held for a token: six states, and the inputs of one consumer."""
    return max(6 * block.output_size + block.num_channels for block in blocks)


def can_solve_again(model: PreTrainedModel, blocks: Sequence[Block]) -> bool:
    """Whether there is a consumer, a producer or a head that a second pass can change."""
    return any(can_move(one) or correctable_producers(one) for one in blocks) or bool(
        head_layers(model)
    )


def can_move(block: Block) -> bool:
    """Whether least squares on the residual stream can solve for a consumer.

    Not where a norm or a gate stands between the two, nor for experts, whose tokens differ, nor
    where layers share weights and so have a stream for each of them.
    """
    return block.adds_to_stream and not block.expert_of and block.calls == 1


def _moved(
    entering: EnteringLayer,
    block: Block,
    wanted: Sequence[ResidualStream],
    ridges: Sequence[float],
    *,
    num_held_out: int,
    last: bool,
) -> tuple[tuple[Tensor, Tensor | None], float | None, list[Any] | None]:
    """How a consumer is moved, in the pruned model too, and the ridge that was best.

    And behind the last consumer what the layer then returns on each batch: the stream moves by what
    the consumer does, so that the layer need not be computed again. None where that is not so.
    """
    base = entering.model.base_model
    consumer = projection(base, block.consumer)
    shape = consumer.weight.shape
    fit = HeldOutFit(shape[1], shape[0], centred=consumer.bias is not None)
    seen = []
    for number, found in enumerate(entering.streams([block], whole=last)):
        batch, dense = entering.batches[number], wanted[number]
        noted = (found.inputs[block.name], found.after[block.name], dense.after[block.name])
        mask = token_mask(batch, block.mask).to(noted[0].device)
        inputs, after, wanted_after = (
            token_rows(one.to(mask.device), mask).float() for one in noted
        )
        judges = number >= len(entering.batches) - num_held_out
        fit.update(inputs, wanted_after - after, judges=judges)
        seen += [found] if last else []
    ridge, change, shift = fit.best(ridges)
    change = change.T
    with loaded(base, block.consumer, store=True) as consumer:
        before = consumer.weight.clone()
        consumer.weight.copy_(before.to(change) + change)
        rounded = consumer.weight - before
        if shift is not None:
            assert consumer.bias is not None
            consumer.bias.add_(shift.to(consumer.bias))
    outputs = [one.output_after(base, block, rounded, shift) for one in seen]
    known = outputs and all(output is not None for output in outputs)
    return (change, shift), ridge, outputs if known else None
