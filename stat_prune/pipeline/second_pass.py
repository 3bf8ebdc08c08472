"""The correction again, from the pruned network's own activations towards the dense stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.data.batching import token_mask
from stat_prune.data.calibration import CalibrationSet
from stat_prune.linalg import CrossMoments
from stat_prune.linalg.least_squares import solve_normal
from stat_prune.measuring.collectors import token_rows
from stat_prune.measuring.residual_stream import EnteringLayer, ResidualStream
from stat_prune.measuring.sensitivity import distances_by_sequence
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import loaded
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch, Objective, evaluating
from stat_prune.surgery.cut import pruned_copy
from stat_prune.surgery.layerwise import States, stack_numbers

#: Ridges towards the one-pass solution, relative to each channel's squared norm.
RIDGES = (1.0, 0.3)

#: One calibration sequence in so many is held out, to choose with; fewer allow no second pass.
HELD_OUT = 8

#: Numbers of hidden states that a second pass holds which nobody asked for, about: on so many
#: tokens as give them.
MOST_STATES = 2**28


@dataclass(frozen=True)
class SecondPass:
    """What became of the correction when it was solved again.

    Attributes
    ----------
    taken : bool
        Whether the second pass's solution was; else the first pass's was better.
    distances : dict of str to float
        The objective on held-out calibration sequences, of both passes.
    ridges : dict of str to float or None
        By block, the ridge that was best on held-out sequences; None where the weight stayed.
    """

    taken: bool
    distances: dict[str, float]
    ridges: dict[str, float | None]


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
    folded: Sequence[FoldedConsumer],
    calibration: CalibrationSet,
    objective: Objective,
    *,
    seed: int,
    cut_from: PreTrainedModel | None = None,
    advance: Callable[[str], None] = lambda _name: None,
) -> tuple[list[FoldedConsumer], SecondPass]:
    """The one-pass correction, or that of a second pass, whichever does best on held-out sequences.

    Parameters
    ----------
    model : PreTrainedModel
        The dense model.
    folded : sequence of FoldedConsumer
        The one-pass solution.
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
        folded,
        solved_on.batches,
        held_out.batches,
        ridges=RIDGES,
        cut_from=cut_from,
        advance=advance,
    )
    solutions = {"first pass": list(folded), "second pass": again}
    copies = {name: pruned_copy(base, solution) for name, solution in solutions.items()}
    by_sequence = distances_by_sequence(model, copies, held_out.batches, objective)
    distances = {name: float(found.mean()) for name, found in by_sequence.items()}
    best = min(distances, key=lambda name: distances[name])
    return solutions[best], SecondPass(best == "second pass", distances, ridges)


def restream(
    model: PreTrainedModel,
    folded: Sequence[FoldedConsumer],
    batches: Sequence[Batch],
    held_out: Sequence[Batch] = (),
    *,
    ridges: Sequence[float],
    cut_from: PreTrainedModel | None = None,
    advance: Callable[[str], None] = lambda _name: None,
) -> tuple[list[FoldedConsumer], dict[str, float | None]]:
    """Let every consumer make up for what the blocks before it have changed.

    Block by block, the residual stream behind the consumer is compared with the dense model's:
    with kept inputs X of the pruned model and difference E = S_dense - S_pruned of the streams, the
    weight is moved by the D of least ``||X D - E||^2 + ridge ||diag(||X_:j||) D||^2``. So a large
    ridge leaves the one-pass solution. Of several ridges that is taken whose D leaves least of E on
    sequences held out; where none does better there than no D, the consumer stays.
    Consumers whose output the stream does not get as it is (`can_move`) stay as they are.

    Parameters
    ----------
    model : PreTrainedModel
        The dense model; unchanged.
    folded : sequence of FoldedConsumer
        The one-pass solution for each block, layer by layer.
    batches : sequence of mappings of str to Tensor
        Model inputs to solve on. Their hidden states, four per token, and the inputs of one
        consumer are held in memory.
    held_out : sequence of mappings of str to Tensor
        To choose ridges with; without any, there is one.
    ridges : sequence of float
    cut_from : PreTrainedModel, optional
        What is cut; it may differ from the dense model outside of the blocks, which make up for
        that, too.
    advance : callable
        Called with the block's name when it is done.

    Returns
    -------
    list of FoldedConsumer
        With new weights and biases; ``output_error`` stays that of the first pass. Blocks that are
        kept whole stay as they are.
    dict of str to float or None
        The ridge of each block that was solved for, by name; None where no change was best.
    """
    results, taken = list(folded), dict[str, float | None]()
    pruned = pruned_copy(model if cut_from is None else cut_from, folded)
    by_layer: dict[int, list[int]] = {}
    for index, one in enumerate(folded):
        by_layer.setdefault(one.block.layer, []).append(index)
    every = [*batches, *held_out]
    with evaluating(model), evaluating(pruned):
        dense_states: list[States] = [{} for _ in every]
        states: list[States] = [{} for _ in every]
        for layer, stack in enumerate(stack_numbers(model)):
            indices = by_layer.get(layer, [])
            blocks = [folded[i].block for i in indices if can_move(folded[i].block)]
            wanted = [
                ResidualStream(model, layer, blocks, batch, state, inputs=False)
                for batch, state in zip(every, dense_states, strict=True)
            ]
            entering, outputs = EnteringLayer(pruned, layer, every, states), None
            for index in indices:
                one = folded[index]
                if can_move(one.block) and len(one.units) < one.block.num_units:
                    results[index], taken[one.block.name], outputs = _moved(
                        entering,
                        results[index],
                        wanted,
                        ridges,
                        num_held_out=len(held_out),
                        last=index == indices[-1],
                    )
                advance(one.block.name)
            outputs = outputs or [stream.output for stream in entering.streams([], whole=True)]
            for state, stream in zip(dense_states, wanted, strict=True):
                state[stack] = stream.output
            for state, output in zip(states, outputs, strict=True):
                state[stack] = output
    return results, taken


def states_of_token(blocks: Sequence[Block]) -> int:
    """Numbers that are held for a token: four states, and the inputs of one consumer."""
    return max(4 * block.output_size + block.num_channels for block in blocks)


def can_move(block: Block) -> bool:
    """Whether least squares on the residual stream can solve for a consumer.

    Not where a norm or a gate stands between the two, nor for experts, whose tokens differ, nor
    where layers share weights and so have a stream for each of them.
    """
    return block.adds_to_stream and not block.expert_of and block.calls == 1


def _moved(
    entering: EnteringLayer,
    folded: FoldedConsumer,
    wanted: Sequence[ResidualStream],
    ridges: Sequence[float],
    *,
    num_held_out: int,
    last: bool,
) -> tuple[FoldedConsumer, float | None, list[Any] | None]:
    """One consumer solved again and put into the pruned model, and the ridge that was best.

    And behind the last consumer what the layer then returns on each batch: the stream moves by what
    the consumer does, so that the layer need not be computed again. None where that is not so.
    """
    block, base = folded.block, entering.model.base_model
    consumer = projection(base, block.consumer)
    shape, centred = consumer.weight.shape, consumer.bias is not None
    # The ridge is far above what products in float32 cannot tell.
    solved_on, held_out = (CrossMoments(shape[1], shape[0], precision="float32") for _ in range(2))
    seen = []
    for number, found in enumerate(entering.streams([block], whole=last)):
        batch, dense = entering.batches[number], wanted[number]
        noted = (found.inputs[block.name], found.after[block.name], dense.after[block.name])
        mask = token_mask(batch, block.mask).to(noted[0].device)
        inputs, after, wanted_after = (
            token_rows(one.to(mask.device), mask).float() for one in noted
        )
        judges = number >= len(entering.batches) - num_held_out
        (held_out if judges else solved_on).update(inputs, wanted_after - after)
        seen += [found] if last else []
    ridge, change = _best(solved_on, held_out if num_held_out else None, ridges, centred)
    weight, bias, shift = folded.weight + change.T, folded.bias, None
    if centred:
        mean_input, mean_difference = solved_on.means
        shift = mean_difference - change.T @ mean_input
        bias = shift if bias is None else bias + shift
    with loaded(base, block.consumer, store=True) as consumer:
        before = consumer.weight.clone()
        consumer.weight.copy_(weight)
        rounded = consumer.weight - before
        if centred:
            assert consumer.bias is not None
            assert shift is not None
            consumer.bias.add_(shift.to(consumer.bias))
    moved = dataclasses.replace(folded, weight=weight, bias=bias)
    outputs = [one.output_after(base, block, rounded, shift) for one in seen]
    known = outputs and all(output is not None for output in outputs)
    return moved, ridge, outputs if known else None


def _best(
    moments: CrossMoments, held_out: CrossMoments | None, ridges: Sequence[float], centred: bool
) -> tuple[float | None, Tensor]:
    """The ridge whose solution leaves least on held-out sequences, and that solution.

    The squared error is that without a change, and ``tr(D^T (X^T X D - 2 X^T E))``. The ridge is
    None where no change is best.
    """
    normal, cross, _ = moments.normal_equations(centered=centred)
    if held_out is None:
        (ridge,) = ridges
        return ridge, solve_normal(normal, cross, ridge)
    held_normal, held_cross, _ = held_out.normal_equations(centered=centred)
    best, least, change = None, 0.0, torch.zeros_like(cross)
    for ridge in ridges:
        solution = solve_normal(normal.clone(), cross, ridge)
        error = float((solution * (held_normal @ solution - 2 * held_cross)).sum())
        if error < least:
            best, least, change = ridge, error, solution
    return best, change
