"""The second walk: whole pruned models are compared, a layer of each at a time."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.budget.whole_model import (
    GivesUp,
    Measurement,
    size_of_part,
)
from stat_prune.choosing.folding import fold_candidate, in_float32
from stat_prune.choosing.measured import Measured, weights_of
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.objectives import distances
from stat_prune.measuring.sensitivity import sums_by_sequence
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.running import Batch, evaluating
from stat_prune.pipeline.budgeting.efforts import NUM_PARTS, Trials
from stat_prune.pipeline.budgeting.starts import (
    nearest,
    spread_starts,
    starts_of,
)
from stat_prune.pipeline.on_disk.embedding import embedded_before, write_embedded
from stat_prune.pipeline.on_disk.layer_pass import DENSE, LayerPass, layer_name, state_file
from stat_prune.pipeline.workspace import read, read_statistics, write
from stat_prune.reporting.search_report import Search
from stat_prune.surgery.cut import pruned_copy
from stat_prune.surgery.layerwise import run_layer

_STAGE = "search the budget"

#: The piece of work with the distances, a file in it, and a folder in that of each layer.
_COMPARED, _DISTANCES, _FOLDED = "compared", "by_sequence.pt", "folded"


class Comparison:
    """Compares starts as `BudgetSearch` (`pipeline.budgeting.searching`) does with least effort.

    All go through the layers together, beside the dense model; of a layer one cut copy is in
    memory at a time. What decides is asked afterwards.

    Parameters
    ----------
    walk : LayerPass
        That has measured every block.
    measured : sequence of Measured
        With weights.
    """

    def __init__(self, walk: LayerPass, measured: Sequence[Measured]) -> None:
        self.walk, self.run, self.measured = walk, walk.run, measured
        self.checkpoint, self.workspace = walk.checkpoint, walk.workspace
        self._trials = Trials.of(walk.run, walk.positions_per_sequence())
        self._sequences = self._trials.sequences()
        self._batches: Sequence[Batch] = self._sequences.batches

    def choose(self, budget: Budget) -> tuple[list[int], Search]:
        """The candidate of each block for a budget, and how it was found."""
        run = self.run
        starts = starts_of(weights_of(self.measured), run.settings)
        spreads = spread_starts(run, self.measured, starts, budget)
        choices = list(dict.fromkeys(tuple(choice) for _, choice in spreads))
        count = self._sequences.num_samples
        compared = Compared(self._measured(choices), NUM_PARTS)
        best, found = nearest(spreads, compared, errors=self._trials.errors)
        return next(choice for one, choice in spreads if one is best), Search(
            effort=run.settings.effort,
            sequences=count,
            starts=found,
            rounds=[],
            held_out={},
            held_out_sequences=0,
            taken=best.name,
            passes=(1 + len(choices)) * count / run.calibration.num_samples,
            start=best.name,
            given_up=[one.name for one in starts if one.name not in found],
        )

    def _measured(self, choices: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """What each sequence has of the distance of each choice."""
        workspace, run = self.workspace, self.run
        if not workspace.done(_COMPARED):
            with (
                evaluating(run.model),
                gathered_numerical_warnings("folding candidates in the search"),
            ):
                self.walk.through_layers(_name, _STAGE, partial(self._pass_layer, choices))
                with (
                    workspace.piece(_COMPARED, run.stopwatch.seconds) as folder,
                    run.stage(_STAGE),
                ):
                    write(self._by_sequence(len(choices)), folder / _DISTANCES)
        workspace.forget(f"{_name(self.checkpoint.num_layers - 1)}/states")
        found = read(workspace.folder / _COMPARED / _DISTANCES)
        return dict(zip(choices, found, strict=True))

    def _pass_layer(self, choices: Sequence[tuple[int, ...]], number: int, folder: Path) -> None:
        """Take the sequences through a layer: the dense one, and as each choice cuts it."""
        run, checkpoint = self.run, self.checkpoint
        (folder / "states").mkdir()
        (folder / _FOLDED).mkdir()
        if number == 0:
            write_embedded(checkpoint, self._batches, folder / "states")
        numbers = [n for n, block in enumerate(run.blocks) if block.layer == number]
        self._fold(numbers, choices, folder)
        names = checkpoint.layer_names(number)
        checkpoint.load(names)
        run.expect(len(self._batches) * (1 + len(choices)))
        self._pass(run.model, number, DENSE, folder)
        for place, choice in enumerate(choices):
            folded = [self._folded(n, choice[n], folder) for n in numbers]
            pruned = pruned_copy(run.model, folded)
            del folded  # the copy has them in its own dtype
            self._pass(pruned, number, _stream(place), folder)
        checkpoint.release(names)
        shutil.rmtree(folder / _FOLDED)

    def _pass(self, model: PreTrainedModel, number: int, stream: str, folder: Path) -> None:
        device = self.checkpoint.device
        for position, batch in enumerate(self._batches):
            states = self.walk.entering(_name, number, stream, position)
            with embedded_before(model, folder / "states", position, device):
                state = run_layer(model, number, batch, states, device)
            write(state, state_file(folder, stream, position))
            self.run.advance()

    def _fold(
        self, numbers: Sequence[int], choices: Sequence[tuple[int, ...]], folder: Path
    ) -> None:
        """Leave what any choice makes of a layer's blocks in a folder, one after another."""
        run, checkpoint = self.run, self.checkpoint
        consumers = [checkpoint.weight_name(run.blocks[n].consumer) for n in numbers]
        checkpoint.load(consumers)
        for n in numbers:
            block = run.blocks[n]
            known = self.workspace.folder / layer_name(block.layer)
            for index in dict.fromkeys(choice[n] for choice in choices):
                # A Gram matrix gives its memory to what is solved.
                statistics = read_statistics(run, block, known, n, expendable=True, dtype=None)
                folded = in_float32(
                    fold_candidate(self.walk.recipe, statistics, self.measured[n].candidates, index)
                )
                values = {f.name: getattr(folded, f.name) for f in dataclasses.fields(folded)}
                del values["block"], statistics
                write(values, _folded_file(folder, n, index))
        checkpoint.release(consumers)

    def _folded(self, number: int, index: int, folder: Path) -> FoldedConsumer:
        values = read(_folded_file(folder, number, index), self.checkpoint.device)
        return FoldedConsumer(self.run.blocks[number], **values)

    def _by_sequence(self, num_choices: int) -> list[Tensor]:
        """As in a `Measurement`, for each choice."""
        found: list[list[Tensor]] = [[] for _ in range(num_choices)]
        positions = 0
        self.run.expect(len(self._batches) * num_choices)
        with self.checkpoint.head():
            for position, batch in enumerate(self._batches):
                dense = self._output(DENSE, position, batch)
                for place, parts in enumerate(found):
                    pruned = self._output(_stream(place), position, batch)
                    values = distances(self.walk.objective, dense, pruned, batch)
                    parts.append(sums_by_sequence(values, batch))
                    self.run.advance()
                positions += values.numel()
        return [
            torch.cat(parts) * (self._sequences.num_samples / max(positions, 1)) for parts in found
        ]

    def _output(self, stream: str, position: int, batch: Batch) -> Any:
        states = self.walk.entering(_name, self.checkpoint.num_layers, stream, position)
        return self.walk.behind_layers(batch, states)


class Compared:
    """Answers as a `WholeModel` (`choosing.budget.whole_model`) would that has measured before.

    Parameters
    ----------
    by_sequence : mapping of tuple of int to Tensor of shape (n,), float64
        By choice.
    parts : int
        Of the sequences; after each but the last a choice may be given up.
    """

    def __init__(self, by_sequence: Mapping[tuple[int, ...], Tensor], parts: int) -> None:
        self._by_sequence, self._parts = by_sequence, parts

    def measure(self, choice: Sequence[int]) -> Measurement:
        """The distance of a choice."""
        return Measurement(tuple(choice), self._by_sequence[tuple(choice)], {})

    def measure_beside(
        self, choice: Sequence[int], current: Measurement, gives_up: GivesUp
    ) -> Measurement | None:
        """The distance of a choice, or None where it would have been given up."""
        found = self.measure(choice)
        count = len(found.by_sequence)
        size = size_of_part(count, self._parts)
        for end in range(size, count, size):
            if gives_up(found.by_sequence[:end], current.by_sequence[:end]):
                return None
        return found


def _name(number: int) -> str:
    """Of the piece of work that a layer is."""
    return f"compared-{number:04d}"


def _stream(place: int) -> str:
    """What flows through the layers as the choice at a place cuts them."""
    return f"choice-{place}"


def _folded_file(folder: Path, number: int, index: int) -> Path:
    return folder / _FOLDED / f"{number}-{index}.pt"
