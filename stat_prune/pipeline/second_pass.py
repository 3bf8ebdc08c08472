"""The correction again, from the pruned network's own activations towards the dense stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.data.batching import token_mask
from stat_prune.data.calibration import CalibrationSet
from stat_prune.linalg import CrossMoments
from stat_prune.linalg.least_squares import solve_normal
from stat_prune.measuring.collectors import by_token
from stat_prune.measuring.sensitivity import distance
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import loaded
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch, Objective, evaluating
from stat_prune.surgery.cut import pruned_copy
from stat_prune.surgery.layerwise import SeenEnough, States, run_layer, stack_numbers

#: Ridges towards the one-pass solution, relative to each channel's squared norm.
RIDGES = (1.0, 0.3)

#: One calibration sequence in so many is held out, to choose with; fewer allow no second pass.
HELD_OUT = 8


@dataclass(frozen=True)
class SecondPass:
    """What became of the correction when it was solved again.

    Attributes
    ----------
    ridge : float or None
        That of the solution taken; None where the first pass's was best.
    distances : dict of str to float
        The objective on held-out calibration sequences, of the first pass and by ridge.
    """

    ridge: float | None
    distances: dict[str, float]


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
    solutions = {None: list(folded)} | dict(
        zip(
            RIDGES,
            restream(
                model,
                folded,
                solved_on.batches,
                ridges=RIDGES,
                cut_from=cut_from,
                advance=advance,
            ),
            strict=True,
        )
    )
    distances = {
        ridge: distance(model, pruned_copy(base, solution), held_out.batches, objective)
        for ridge, solution in solutions.items()
    }
    best = min(solutions, key=lambda ridge: distances[ridge])
    named = {
        "first pass" if ridge is None else f"ridge {ridge:g}": found
        for ridge, found in distances.items()
    }
    return solutions[best], SecondPass(best, named)


def restream(
    model: PreTrainedModel,
    folded: Sequence[FoldedConsumer],
    batches: Sequence[Batch],
    *,
    ridges: Sequence[float],
    cut_from: PreTrainedModel | None = None,
    advance: Callable[[str], None] = lambda _name: None,
) -> list[list[FoldedConsumer]]:
    """Let every consumer make up for what the blocks before it have changed.

    Block by block, the residual stream behind the consumer is compared with the dense model's:
    with kept inputs X of the pruned model and difference E = S_dense - S_pruned of the streams, the
    weight is moved by the D of least ``||X D - E||^2 + ridge ||diag(||X_:j||) D||^2``. So a large
    ridge leaves the one-pass solution.
    Consumers whose output the stream does not get as it is (`can_move`) stay as they are.

    Parameters
    ----------
    model : PreTrainedModel
        The dense model; unchanged.
    folded : sequence of FoldedConsumer
        The one-pass solution for each block, layer by layer.
    batches : sequence of mappings of str to Tensor
        Model inputs to solve on. Their hidden states, two per token and two more for each ridge,
        are held in memory.
    ridges : sequence of float
    cut_from : PreTrainedModel, optional
        What is cut; it may differ from the dense model outside of the blocks, which make up for
        that, too.
    advance : callable
        Called with the block's name when it is done.

    Returns
    -------
    list of list of FoldedConsumer
        For each ridge, with new weights and biases; ``output_error`` stays that of the first pass.
        Blocks that are kept whole stay as they are.
    """
    results = [list(folded) for _ in ridges]
    pruned = [pruned_copy(model if cut_from is None else cut_from, folded) for _ in ridges]
    by_layer: dict[int, list[int]] = {}
    for index, one in enumerate(folded):
        by_layer.setdefault(one.block.layer, []).append(index)
    with ExitStack() as modes:
        for computing in (model, *pruned):
            modes.enter_context(evaluating(computing))
        dense_states: list[States] = [{} for _ in batches]
        states: list[list[States]] = [[{} for _ in batches] for _ in ridges]
        for layer, stack in enumerate(stack_numbers(model)):
            indices = by_layer.get(layer, [])
            blocks = [folded[i].block for i in indices if can_move(folded[i].block)]
            wanted = [
                _Stream(model, layer, blocks, batch, state)
                for batch, state in zip(batches, dense_states, strict=True)
            ]
            for index in indices:
                block = folded[index].block
                if can_move(block) and len(folded[index].units) < block.num_units:
                    for number, ridge in enumerate(ridges):
                        results[number][index] = _moved(
                            pruned[number],
                            results[number][index],
                            batches,
                            states[number],
                            wanted,
                            ridge,
                        )
                advance(block.name)
            for state, stream in zip(dense_states, wanted, strict=True):
                state[stack] = stream.output
            for its_model, its_states in zip(pruned, states, strict=True):
                for state, batch in zip(its_states, batches, strict=True):
                    state[stack] = _Stream(its_model, layer, [], batch, state).output
    return results


def can_move(block: Block) -> bool:
    """Whether least squares on the residual stream can solve for a consumer.

    Not where a norm or a gate stands between the two, nor for experts, whose tokens differ, nor
    where layers share weights and so have a stream for each of them.
    """
    return block.adds_to_stream and not block.expert_of and block.calls == 1


def _moved(
    pruned: PreTrainedModel,
    folded: FoldedConsumer,
    batches: Sequence[Batch],
    states: Sequence[States],
    wanted: Sequence[_Stream],
    ridge: float,
) -> FoldedConsumer:
    """One consumer solved again, and put into `pruned`."""
    block = folded.block
    consumer = projection(pruned.base_model, block.consumer)
    # The ridge is far above what products in float32 cannot tell.
    moments = CrossMoments(consumer.weight.shape[1], len(consumer.weight), precision="float32")
    for batch, state, dense in zip(batches, states, wanted, strict=True):
        found = _Stream(pruned, block.layer, [block], batch, state, whole=False)
        noted = (found.inputs[block.name], found.after[block.name], dense.after[block.name])
        mask = token_mask(batch, block.mask).to(noted[0].device)
        inputs, after, wanted_after = (
            by_token(one.to(mask.device), mask)[mask].float() for one in noted
        )
        moments.update(inputs, wanted_after - after)
    centred = consumer.bias is not None
    normal, cross, _ = moments.normal_equations(centered=centred)
    change = solve_normal(normal, cross, ridge)
    weight, bias = folded.weight + change.T, folded.bias
    if centred:
        mean_input, mean_difference = moments.means
        shift = mean_difference - change.T @ mean_input
        bias = shift if bias is None else bias + shift
    with loaded(pruned.base_model, block.consumer, store=True) as consumer:
        consumer.weight.copy_(weight)
        if centred:
            assert consumer.bias is not None
            consumer.bias.add_(shift.to(consumer.bias))
    return dataclasses.replace(folded, weight=weight, bias=bias)


class _Stream:
    """One layer on one batch, and the residual stream behind each of its consumers.

    Attributes
    ----------
    inputs : dict of str to Tensor of shape (batch, sequence, channels)
        Of the consumers, by block name; batch and sequence may be joined.
    after : dict of str to Tensor of shape (batch, sequence, hidden)
        The stream with their outputs added; likewise.
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
    ) -> None:
        base = model.base_model
        self.inputs: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for block in blocks:
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

    @staticmethod
    def _noting(
        notes: dict[str, Tensor], block: Block, *, last: bool = False
    ) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            notes[block.name] = args[0]
            if last:
                raise SeenEnough

        return hook
