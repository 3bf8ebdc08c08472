"""The search for a spread of the budget: weights are moved, and kept where the distance falls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from stat_prune.choosing.budget.whole_model import Measurement, WholeModel

#: From weights of the blocks' errors to the candidate of each block.
Spread = Callable[[Sequence[Tensor]], list[int]]

#: What a move multiplies weights with, or divides them by: at first, and at last.
FACTORS = (4.0, 1.4)

#: Proposals in a row that lead where the search has been, after which it ends.
MAX_STALE = 40


@dataclass(frozen=True)
class Point:
    """Where a search stands.

    Attributes
    ----------
    weights : sequence of Tensor of shape (c,), float64
        By block, effect on the output for each unit of its relative squared error.
    measured : Measurement
    """

    weights: Sequence[Tensor]
    measured: Measurement


@dataclass(frozen=True)
class Exploration:
    """What a search has come to.

    Attributes
    ----------
    point : Point
    evaluations : int
        Choices that were measured, those that were given up included.
    accepted : int
        Those that were better than all before.
    """

    point: Point
    evaluations: int
    accepted: int


def explore(
    start: Point,
    spread: Spread,
    whole: WholeModel,
    *,
    layers: Sequence[int],
    parts: Sequence[str],
    passes: float,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Exploration:
    """Search near a point for weights with which the pruned model is nearer to the dense one.

    A (1+1) evolution strategy (Beyer & Schwefel 2002) on the logarithms of the weights: the weights
    of some neighbouring layers, of all blocks there or those of one part, are multiplied or divided
    by a factor that shrinks as the search goes on; `spread` makes sizes of them, so that every
    budget, multiple and bond between blocks is kept; what is nearer stays, and is moved once more.
    Measuring whole models as a criterion is from EvoPress (Sieberling et al., ICML 2025).

    Parameters
    ----------
    start : Point
    spread : callable
    whole : WholeModel
        That has measured `start`.
    layers, parts : sequence of int, of str
        The layer and the part of each block.
    passes : float
        What may be computed, in forward passes over the sequences of `whole`.
    seed : int
    advance : callable
        Called after each evaluation.
    """
    point, evaluations, accepted, stale = start, 0, 0, 0
    begun = whole.passes
    seen = {start.measured.choice}
    moves = _moves(layers, parts, np.random.default_rng(seed))
    direction = next(moves, None)
    while direction and whole.passes - begun < passes and stale < MAX_STALE:
        spent = (whole.passes - begun) / passes
        factor = FACTORS[0] * (FACTORS[1] / FACTORS[0]) ** spent
        weights = [one * factor**sign for one, sign in zip(point.weights, direction, strict=True)]
        choice = tuple(spread(weights))
        if choice in seen:
            direction, stale = next(moves, None), stale + 1
            continue
        seen.add(choice)
        found = whole.measure_beside(choice, point.measured, in_vain)
        evaluations, stale = evaluations + 1, 0
        advance()
        if found is None or not is_better(
            found.by_sequence, point.measured.by_sequence, errors=0.0
        ):
            direction = next(moves, None)
            continue
        point, accepted = Point(weights, found), accepted + 1
    return Exploration(point, evaluations, accepted)


def in_vain(found: Tensor, current: Tensor) -> bool:
    """Whether what is known of some sequences speaks against a choice."""
    return is_better(current, found, errors=0.5)


def is_better(found: Tensor, other: Tensor, *, errors: float) -> bool:
    """Whether a mean distance is less than another by so many standard errors of the difference.

    And by a thousandth, which no rounding amounts to.

    Parameters
    ----------
    found, other : Tensor of shape (n,), float64
        Of the same sequences.
    errors : float
    """
    gain = other - found
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return float(gain.mean()) > max(errors * error, 1e-3 * float(other.mean().abs()))


def _moves(
    layers: Sequence[int], parts: Sequence[str], generator: np.random.Generator
) -> Iterator[list[int]]:
    """For each block 1, -1 or 0: of neighbouring layers, half of the time one; never of all blocks.

    None where all blocks are of one layer and part: there is nothing to move between.
    """
    every = sorted(set(layers))
    kinds = sorted(set(parts))
    largest = max(len(every) // 2, 1).bit_length()
    while len(every) > 1 or len(kinds) > 1:
        width = 2 ** int(generator.integers(largest)) if generator.random() < 0.5 else 1
        first = int(generator.integers(len(every) - width + 1))
        part = [*kinds, None][int(generator.integers(len(kinds) + 1))]
        sign = 1 if generator.random() < 0.5 else -1
        moved = [
            sign if layer in every[first : first + width] and part in (None, own) else 0
            for layer, own in zip(layers, parts, strict=True)
        ]
        if 0 < sum(map(abs, moved)) < len(layers):
            yield moved
