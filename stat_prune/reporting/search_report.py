"""What a search for a budget found at each stage, and what it computed for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SearchRound:
    """A search from the best point so far.

    Attributes
    ----------
    sequences : int
        Calibration sequences that it measured on.
    evaluations, accepted : int
        Choices that were measured, at least in part, and those that were taken.
    before, after : float
        Distance of the output from the dense model's on these sequences.
    """

    sequences: int
    evaluations: int
    accepted: int
    before: float
    after: float

    @property
    def name(self) -> str:
        """As in `Search.held_out`."""
        return f"search on {self.sequences} sequences"


@dataclass(frozen=True)
class Search:
    """How a budget was spread over the blocks.

    Attributes
    ----------
    effort : {"fast", "normal", "thorough"}
    sequences : int
        Calibration sequences that the starts were compared on.
    starts : dict of str to float
        By name, distance of the output of the whole pruned model from the dense one's; of those
        that were not given up halfway, as they were worse than another.
    rounds : list of SearchRound
    held_out : dict of str to float
        The same distance on sequences that nothing else has seen, of the best start and of what
        each round found; empty where there was nothing to decide.
    held_out_sequences : int
    taken : str
        Name of the start or of the round.
    passes : float
        What was computed, in forward passes over the calibration set.
    start : str
        Name of the start that was gone on from: the nearest, or an earlier one that is as near as
        sequences of one value each can tell.
    given_up : list of str
        Names of the starts that are not in `starts`.
    """

    effort: str
    sequences: int
    starts: dict[str, float]
    rounds: list[SearchRound]
    held_out: dict[str, float]
    held_out_sequences: int
    taken: str
    passes: float
    start: str = ""
    given_up: Sequence[str] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Search:
        """The search that ``dataclasses.asdict`` has made plain values of."""
        return cls(**{**values, "rounds": [SearchRound(**one) for one in values["rounds"]]})

    def __str__(self) -> str:
        best = min(self.starts, key=lambda name: self.starts[name])
        evaluations = sum(one.evaluations for one in self.rounds)
        text = (
            f"{self.effort}; nearest start on {self.sequences} sequences: {best} "
            f"({self.starts[best]:.3g})"
        )
        if self.given_up:
            text += f", {len(self.given_up)} given up"
        if self.start not in ("", best):
            text += f"; {self.start} ({self.starts[self.start]:.3g}) is within its error"
        if self.rounds:
            text += f"; {evaluations} moves measured"
        if self.held_out:
            judged = ", ".join(f"{name} {value:.3g}" for name, value in self.held_out.items())
            text += f"; on {self.held_out_sequences} sequences held out: {judged}"
        return f"{text}; {self.taken} taken; {self.passes:.1f} passes"


@dataclass(frozen=True)
class ComparedShares:
    """How a budget was shared out between blocks, token embeddings and head.

    Attributes
    ----------
    distances : dict of str to float
        By what is kept of each, distance of the output from the dense model's before any correction
        is solved again.
    corrected : dict of str to float
        The same on held-out sequences, of those whose correction was solved on the model with
        factored embeddings; the least was taken.
    """

    distances: dict[str, float]
    corrected: dict[str, float]


@dataclass(frozen=True)
class DimensionsOfHeads:
    """How a budget was shared with dimensions inside heads.

    Attributes
    ----------
    distances : dict of str to float
        Distance of the output from the dense model's by the fraction of the model that heads and
        neurons leave; the first is the target, and no dimension has to leave.
    sequences : int
        That this was measured on: those held out, where there are any.
    taken : str
        The fraction: the second, unless it was clearly farther.
    sizes : dict of str to list of int
        By block, dimensions of queries and keys, and of values, in each of its heads; of blocks
        that lost some.
    errors : dict of str to list of (float or None)
        Of the same blocks relative errors on the calibration set: of the scores, about what keys
        have in common; and of the output with the scores as they were, None where values have lost
        nothing.
    kept : dict of {"query-key", "value"} to float
        Where the target has fractions of dimensions by themselves: what is kept of their cost in
        the heads that stay. There was nothing to choose between then, so that nothing but the sizes
        and errors is known besides.
    evaluations : int
        Spreads over heads, neurons and dimensions that were measured, at least in part.
    passes : float
        What was computed to find them, in forward passes over the calibration set.
    """

    distances: dict[str, float] = field(default_factory=dict)
    sequences: int = 0
    taken: str = ""
    sizes: dict[str, list[int]] = field(default_factory=dict)
    errors: dict[str, list[float | None]] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0
    passes: float = 0.0

    def __str__(self) -> str:
        if self.kept:
            shares = ", ".join(f"{kind} {value:.4g}" for kind, value in self.kept.items())
            sizes = ", ".join(f"{keys}/{values}" for keys, values in self.sizes.values())
            return f"kept {shares}; query-key/value dimensions {sizes or 'whole'}"
        judged = _named(self.distances)
        sizes = ", ".join(f"{keys}/{values}" for keys, values in self.sizes.values())
        text = (
            f"heads and neurons to {judged} on {self.sequences} sequences; {self.taken} taken; "
            f"query-key/value dimensions {sizes or 'whole'}"
        )
        if self.evaluations:
            text += f"; {self.evaluations} spreads measured; {self.passes:.1f} passes"
        return text


def _named(distances: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in distances.items())
