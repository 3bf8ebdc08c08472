"""How far a model with every block pruned is from the dense one, for one choice after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.data.batching import num_sequences
from stat_prune.families import transformer_layers
from stat_prune.machine.distributed import barrier, gather, is_mine, num_processes
from stat_prune.measuring.objectives import distances, reader_of
from stat_prune.measuring.sensitivity import recorded, sums_by_sequence
from stat_prune.model.running import Batch, Objective, evaluating
from stat_prune.surgery.layerwise import States, run_rest, stack_numbers

#: Entries of layers' outputs that are remembered for each choice, and of the dense model's own.
MAX_REMEMBERED = 2**25

#: A model cut as a choice says; it shares what it can with that which is measured.
Cut = Callable[[Sequence[int]], PreTrainedModel]

#: Whether measuring on is in vain: ``(found, current)``, what the sequences so far have of each.
GivesUp = Callable[[Tensor, Tensor], bool]


@dataclass(frozen=True)
class Measurement:
    """The distance of one pruned model's output from the dense one's.

    Attributes
    ----------
    choice : tuple of int
        The candidate of each block.
    by_sequence : Tensor of shape (n,), float64
        What each sequence has of the distance, which is their mean.
    outputs : dict of int to list of object
        What each layer has returned, by the numbers of the batches of which that is remembered.
    """

    choice: tuple[int, ...]
    by_sequence: Tensor
    outputs: dict[int, list[Any]] = field(repr=False)

    @property
    def distance(self) -> float:
        """Mean over the values that the objective has."""
        return float(self.by_sequence.mean())


class Measures(Protocol):
    """What knows how far choices are from the dense model."""

    def measure(self, choice: Sequence[int]) -> Measurement:
        """The distance of a choice."""

    def measure_beside(
        self, choice: Sequence[int], current: Measurement, gives_up: GivesUp
    ) -> Measurement | None:
        """The distance of a choice, or None where it was given up beside another."""


class WholeModel:
    """Measures choices on a few sequences.

    Parameters
    ----------
    model : PreTrainedModel
        The dense model; unchanged.
    layers : sequence of int
        The layer of each block.
    cut : callable
        From a choice to the model that is to be near it.
    batches : sequence of mappings of str to Tensor
    objective : callable
    parts : int
        How often measuring a choice may be given up, at most: before each further part of the
        sequences.

    Attributes
    ----------
    num_sequences : int
    passes : float
        What was computed so far, in forward passes of all layers over all sequences.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int],
        cut: Cut,
        batches: Sequence[Batch],
        objective: Objective,
        *,
        parts: int,
    ) -> None:
        self._model, self._layers, self._cut = model, layers, cut
        self._batches, self._objective = batches, objective
        self._stacks = stack_numbers(model)
        self.num_sequences = sum(map(num_sequences, batches))
        self._part = size_of_part(self.num_sequences, parts)
        self.passes = 0.0
        self._positions = self._entries = 0
        with evaluating(model):
            self._dense = [self._look_at(number) for number in range(len(batches))]
        called_once = len(set(transformer_layers(model))) == len(self._stacks)
        self._remembers = called_once and self._entries <= MAX_REMEMBERED
        self.passes = 1.0

    def measure(self, choice: Sequence[int]) -> Measurement:
        """The distance of a choice."""
        found = self._measure(tuple(choice), None, None)
        assert found is not None
        return found

    def measure_beside(
        self, choice: Sequence[int], current: Measurement, gives_up: GivesUp
    ) -> Measurement | None:
        """The distance of a choice, or None where it was given up.

        Parameters
        ----------
        choice : sequence of int
            The candidate of each block.
        current : Measurement
            Of another choice: layers before the first block that differs are not computed again.
        gives_up : callable
            Asked after each part of the sequences but the last.
        """
        return self._measure(tuple(choice), current, gives_up)

    def _measure(
        self, choice: tuple[int, ...], current: Measurement | None, gives_up: GivesUp | None
    ) -> Measurement | None:
        outputs: dict[int, list[Any]] = {}
        first = 0
        if current is not None:
            differing = zip(self._layers, choice, current.choice, strict=True)
            first = min((layer for layer, new, old in differing if new != old), default=0)
        pruned = self._cut(choice)
        found = torch.empty(0, dtype=torch.float64)
        asked = self._part
        with evaluating(pruned):
            for values in self._by_batch(pruned, first, current, outputs):
                found = torch.cat([found, values])
                # At the same sequences however they are batched.
                while current is not None and gives_up is not None and asked <= len(found):
                    if asked < self.num_sequences and gives_up(
                        found[:asked], current.by_sequence[:asked]
                    ):
                        self._count(asked, first)
                        return None
                    asked += self._part
        self._count(self.num_sequences, first)
        return Measurement(choice, found, outputs)

    def _count(self, sequences: int, first: int) -> None:
        """Note what was computed, layers before `first` left out."""
        known = first / max(len(self._stacks), 1) if self._remembers else 0.0
        self.passes += sequences / self.num_sequences * (1 - known)

    def _by_batch(
        self,
        pruned: PreTrainedModel,
        first: int,
        current: Measurement | None,
        outputs: dict[int, list[Any]],
    ) -> Iterator[Tensor]:
        """What the sequences of each batch have of the distance; of several processes each
        computes some batches, whether or not they will be asked for.
        """

        def on_batch(number: int) -> Tensor:
            known = None if current is None else current.outputs.get(number)
            return self._on_batch(pruned, number, first if known else 0, known, outputs)

        numbers = range(len(self._batches))
        found: Iterator[Tensor] = map(on_batch, numbers)
        if num_processes() > 1:
            mine = [number for number in numbers if is_mine(number)]
            found = iter(gather(barrier(lambda: {n: on_batch(n) for n in mine})))
        return found

    def _on_batch(
        self,
        pruned: PreTrainedModel,
        number: int,
        first: int,
        known: list[Any] | None,
        outputs: dict[int, list[Any]],
    ) -> Tensor:
        batch = self._batches[number]
        reader = reader_of(pruned, self._objective)
        layers = transformer_layers(pruned)
        states = dict(zip(self._stacks[:first], known or (), strict=False))
        with recorded(layers[first:]) as computed:
            output = run_rest(reader, first, batch, states)
        if self._remembers:
            outputs[number] = [*(known or ())[:first], *map(computed.get, layers[first:])]
        values = distances(self._objective, self._dense[number](), output, batch)
        sums = sums_by_sequence(values, batch)
        return sums * (self.num_sequences / max(self._positions, 1))

    def _look_at(self, number: int) -> Callable[[], Any]:
        """A function that has the dense model's output on a batch.

        It is remembered, or computed again from what the last layers have returned.
        """
        batch, reader = self._batches[number], reader_of(self._model, self._objective)
        layers = transformer_layers(self._model)
        with recorded(layers) as computed:
            output = run_rest(reader, 0, batch, {})
        self._positions += distances(self._objective, output, output, batch).numel()
        states: States = dict(zip(self._stacks, map(computed.get, layers), strict=True))
        self._entries += _entries([computed.get(layer) for layer in layers])
        if _entries(output) * len(self._batches) <= MAX_REMEMBERED:
            return lambda: output
        return partial(run_rest, reader, len(layers), batch, states)


def size_of_part(count: int, parts: int) -> int:
    """Sequences in each of the parts of so many, but the last."""
    return max(-(-count // parts), 1)


def _entries(value: Any) -> int:
    """Of all tensors in what a module has returned."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, dict):
        return sum(map(_entries, value.values()))
    return sum(map(_entries, value)) if isinstance(value, list | tuple) else 0
