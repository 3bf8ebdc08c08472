"""The correction again, on what the pruned network itself computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from stat_prune.choosing.budget.exploring import is_better
from stat_prune.data.calibration import CalibrationSet
from stat_prune.measuring.objectives import reader_of
from stat_prune.measuring.sensitivity import distances_by_sequence
from stat_prune.model.blocks import Block
from stat_prune.model.running import Objective
from stat_prune.pipeline.solving_again.solution import Solution
from stat_prune.pipeline.solving_again.stream_readers import correctable_producers, head_layers
from stat_prune.pipeline.solving_again.stream_solver import StreamSolver, can_move

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
    solved_on, held_out = with_held_out(calibration, seed=seed)
    solver = StreamSolver(
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
    again = solver.solve()
    once = first.cut_copy(model if cut_from is None else cut_from)
    by_sequence = distances_by_sequence(
        solver.outputs_on_held_out(once, objective), objective, ("first pass", "second pass")
    )
    taken = not is_better(*by_sequence.values(), errors=SURE)
    distances = {name: float(found.mean()) for name, found in by_sequence.items()}
    return again if taken else first, SecondPass(taken, distances, solver.ridges)


def states_of_token(blocks: Sequence[Block]) -> int:
    """Numbers that are held for a token: six states, and the inputs of one consumer."""
    return max(6 * block.output_size + block.num_channels for block in blocks)


def moves_consumers(blocks: Sequence[Block]) -> bool:
    """Whether a second pass has consumers to move."""
    return any(map(can_move, blocks))


def can_solve_again(model: PreTrainedModel, blocks: Sequence[Block]) -> bool:
    """Whether there is a consumer, a producer or a head that a second pass can change."""
    return any(can_move(one) or correctable_producers(one) for one in blocks) or bool(
        head_layers(model)
    )
