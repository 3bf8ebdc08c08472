"""Pruned models on their way through the layers of a checkpoint, beside the dense one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.budget.costs import Budget, Share
from stat_prune.choosing.folding import fold_candidate, in_float32
from stat_prune.choosing.measured import Measured
from stat_prune.data.calibration import CalibrationSet
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.objectives import distances
from stat_prune.measuring.sensitivity import sums_by_sequence
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.running import Batch, evaluating
from stat_prune.pipeline.budgeting.sharing import with_table
from stat_prune.pipeline.on_disk.embedding import (
    embedded_before,
    note_embedded,
    tables_in_memory,
)
from stat_prune.pipeline.on_disk.layer_pass import DENSE, LayerPass, layer_name, state_file
from stat_prune.pipeline.workspace import read, read_statistics, write
from stat_prune.settings.targets import EMBEDDINGS, HEAD
from stat_prune.surgery.cut import pruned_copy
from stat_prune.surgery.layerwise import run_layer
from stat_prune.surgery.token_tables import find_table

#: In the piece of work that has the distances, the file of them, and a folder in that of a layer.
_DISTANCES, _FOLDED = "by_sequence.pt", "folded"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A pruned model.

    Attributes
    ----------
    choice : tuple of int
        The candidate of each block.
    budget : Budget
        Of which embeddings and a head are factored, or stay.
    """

    choice: tuple[int, ...]
    budget: Budget


class VariantPass:
    """Some sequences on their way through the layers, in the dense model and in pruned ones.

    All go through the layers together; of a layer one cut copy is in memory at a time.

    Parameters
    ----------
    name : str
        Of the piece of work with what is found, and of those of the layers.
    stage : str
    walk : LayerPass
        That has measured every block.
    measured : sequence of Measured
    sequences : CalibrationSet
    variants : sequence of Variant
    """

    def __init__(
        self,
        name: str,
        stage: str,
        walk: LayerPass,
        measured: Sequence[Measured],
        sequences: CalibrationSet,
        variants: Sequence[Variant],
    ) -> None:
        self._name, self._stage, self._walk, self._measured = name, stage, walk, measured
        self._run, self._checkpoint, self._workspace = walk.run, walk.checkpoint, walk.workspace
        self._sequences, self._batches = sequences, sequences.batches
        self._variants = variants
        # As long as the model has no weights it says which are tied.
        factored = any(one.budget.of_embeddings < 1 for one in variants)
        self._tied = factored and bool(find_table(walk.run.model).tied_heads)

    def by_sequence(self) -> list[Tensor]:
        """What each sequence has of the distance of each variant, as in a `Measurement`."""
        workspace, run = self._workspace, self._run
        if not workspace.done(self._name):
            with evaluating(run.model), gathered_numerical_warnings("folding candidates"):
                self._embed()
                self._walk.through_layers(self._layer, self._stage, self._pass_layer)
                with (
                    workspace.piece(self._name, run.stopwatch.seconds) as folder,
                    run.stage(self._stage),
                ):
                    write(self._distances(), folder / _DISTANCES)
        last = self._layer(self._checkpoint.num_layers - 1)
        workspace.forget(f"{last}/states", self._embedded_name)
        found: list[Tensor] = read(workspace.folder / self._name / _DISTANCES)
        return found

    def _layer(self, number: int) -> str:
        """Of the piece of work that a layer is."""
        return f"{self._name}-{number:04d}"

    @property
    def _embedded_name(self) -> str:
        """Of the piece of work with what the embeddings return, and their factors."""
        return f"{self._name}-embedded"

    @property
    def _tables(self) -> list[float]:
        """What is kept of the embeddings, each once; all of them in the dense model."""
        return list(dict.fromkeys([1.0, *(one.budget.of_embeddings for one in self._variants)]))

    def _embed(self) -> None:
        """Leave what dense and factored embeddings return on each batch in a folder each."""
        workspace, checkpoint, run = self._workspace, self._checkpoint, self._run
        if workspace.done(self._embedded_name) or workspace.done(self._layer(0)):
            return
        # Positions and norms come before the first layer, too.
        before = checkpoint.outer_names(base=True, head=False)
        in_memory = (
            checkpoint.loaded(before)
            if self._tables == [1.0]
            else tables_in_memory(checkpoint, run)
        )
        with workspace.piece(self._embedded_name) as folder, run.stage(self._stage), in_memory:
            for place, kept in enumerate(self._tables):
                model = with_table(run, self._only(embeddings=kept))
                (folder / str(place)).mkdir()
                note_embedded(model, self._batches, folder / str(place), checkpoint.device)

    def _pass_layer(self, number: int, folder: Path) -> None:
        """Take the sequences through a layer: the dense one, and as each variant cuts it."""
        run, checkpoint = self._run, self._checkpoint
        (folder / "states").mkdir()
        (folder / _FOLDED).mkdir()
        numbers = [n for n, block in enumerate(run.blocks) if block.layer == number]
        self._fold(numbers, folder)
        with checkpoint.loaded(checkpoint.layer_names(number)):
            run.expect(len(self._batches) * (1 + len(self._variants)))
            self._pass(run.model, number, DENSE, 1.0, folder)
            for place, variant in enumerate(self._variants):
                folded = [self._folded(n, variant.choice[n], folder) for n in numbers]
                pruned = pruned_copy(run.model, folded)
                del folded  # the copy has them in its own dtype
                self._pass(pruned, number, _stream(place), variant.budget.of_embeddings, folder)
        shutil.rmtree(folder / _FOLDED)

    def _pass(
        self, model: PreTrainedModel, number: int, stream: str, kept: float, folder: Path
    ) -> None:
        device = self._checkpoint.device
        embedded = self._workspace.folder / self._embedded_name / str(self._tables.index(kept))
        for position, batch in enumerate(self._batches):
            states = self._walk.entering(self._layer, number, stream, position)
            with nullcontext() if number else embedded_before(model, embedded, position, device):
                state = run_layer(model, number, batch, states, device)
            write(state, state_file(folder, stream, position))
            self._run.advance()

    def _fold(self, numbers: Sequence[int], folder: Path) -> None:
        """Leave what any choice makes of a layer's blocks in a folder, one after another."""
        run, checkpoint = self._run, self._checkpoint
        consumers = [checkpoint.weight_name(run.blocks[n].consumer) for n in numbers]
        with checkpoint.loaded(consumers):
            for n in numbers:
                block, candidates = run.blocks[n], self._measured[n].candidates
                known = self._workspace.folder / layer_name(block.layer)
                for index in dict.fromkeys(one.choice[n] for one in self._variants):
                    # A Gram matrix gives its memory to what is solved.
                    statistics = read_statistics(run, block, known, n, expendable=True, dtype=None)
                    folded = in_float32(
                        fold_candidate(self._walk.recipe, statistics, candidates, index)
                    )
                    values = {f.name: getattr(folded, f.name) for f in dataclasses.fields(folded)}
                    del values["block"], statistics
                    write(values, _folded_file(folder, n, index))

    def _folded(self, number: int, index: int, folder: Path) -> FoldedConsumer:
        values = read(_folded_file(folder, number, index), self._checkpoint.device)
        return FoldedConsumer(self._run.blocks[number], **values)

    def _distances(self) -> list[Tensor]:
        """Of each variant, where all are through the layers."""
        found: dict[int, Tensor] = {}
        self._run.expect(len(self._batches) * len(self._variants))
        checkpoint, run = self._checkpoint, self._run
        behind = [self._factors_behind(one) for one in self._variants]
        # With the embeddings, where what they share with a head is factored.
        with tables_in_memory(checkpoint, run) if any(behind) else checkpoint.head():
            for factors in dict.fromkeys(behind):
                places = [place for place, one in enumerate(behind) if one == factors]
                found |= self._distances_behind(places, dict(factors))
        return [found[place] for place in range(len(self._variants))]

    def _factors_behind(self, variant: Variant) -> tuple[tuple[str, float], ...]:
        """What a variant keeps of what stands behind the layers and is factored."""
        kept, head = variant.budget.of_embeddings, variant.budget.of_head
        found = []
        if kept < 1 and self._tied:
            found.append((EMBEDDINGS, kept))
        if head < 1:
            found.append((HEAD, head))
        return tuple(found)

    def _distances_behind(
        self, places: Sequence[int], factors: Mapping[str, float]
    ) -> dict[int, Tensor]:
        """Of variants that have the same factors behind the layers, by place."""
        run = self._run
        behind = with_table(run, self._only(**factors))
        found: dict[int, list[Tensor]] = {place: [] for place in places}
        positions = 0
        for position, batch in enumerate(self._batches):
            dense = self._output(run.model, DENSE, position, batch)
            for place, parts in found.items():
                pruned = self._output(behind, _stream(place), position, batch)
                values = distances(self._walk.objective, dense, pruned, batch)
                parts.append(sums_by_sequence(values, batch))
                run.advance()
            positions += values.numel()
        share = self._sequences.num_samples / max(positions, 1)
        return {place: torch.cat(parts) * share for place, parts in found.items()}

    def _only(self, **kept: float) -> Budget:
        """One of which these tables are factored, and no others."""
        return dataclasses.replace(self._variants[0].budget, share=Share(1.0, **kept))

    def _output(self, model: PreTrainedModel, stream: str, position: int, batch: Batch) -> Any:
        states = self._walk.entering(self._layer, self._checkpoint.num_layers, stream, position)
        return self._walk.behind_layers(batch, states, model)


def _stream(place: int) -> str:
    """What flows through the layers as the variant at a place cuts them."""
    return f"variant-{place}"


def _folded_file(folder: Path, number: int, index: int) -> Path:
    return folder / _FOLDED / f"{number}-{index}.pt"
