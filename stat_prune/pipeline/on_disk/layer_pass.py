"""One walk over the layers: statistics, candidates and probes of every block, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.checkpoints.layer_weights import Checkpoint
from stat_prune.choosing.folding import fold_candidate
from stat_prune.choosing.measured import Measured
from stat_prune.linalg import Moments
from stat_prune.measuring.collectors import MomentsCollector
from stat_prune.measuring.head_states import head_moments
from stat_prune.measuring.objectives import distances, objective_named, reader_of
from stat_prune.measuring.sensitivity import positions_of, replaced
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.blocks import Block
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch, evaluating
from stat_prune.pipeline.on_disk.embedding import embedded_before, write_embedded
from stat_prune.pipeline.one_block import candidates_of
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.workspace import (
    Workspace,
    read,
    read_measured,
    read_statistics,
    write,
    write_measured,
    write_statistics,
)
from stat_prune.surgery.layerwise import States, run_layer, run_rest
from stat_prune.surgery.token_tables import own_head

#: What flows through the layers beside a variant for every block: the calibration set, which is
#: collected, and the probes' sequences in the dense model.
CALIBRATION, DENSE = "calibration", "dense"

#: The piece of work with what a head reads, and the file in it.
_AT_HEAD, _MOMENTS = "at-head", "moments.pt"


class LayerPass:
    """The calibration set and the probes on their way through the layers of a checkpoint.

    One layer's weights are in memory at a time, and what enters it is on disk. Each block is
    probed as in `stat_prune.measuring.sensitivity.probe`, but all probes go through the layers
    together: the one of a block sets out from its layer, on what the dense model feeds it.

    Parameters
    ----------
    run : Run
    checkpoint : Checkpoint
        Of the run's model.
    workspace : Workspace
    to_head : bool
        Whether the calibration set goes on to a head of its own, as that is to be factored.
    """

    def __init__(
        self, run: Run, checkpoint: Checkpoint, workspace: Workspace, *, to_head: bool = False
    ) -> None:
        self.run, self.recipe = run, run.settings.recipe
        self.checkpoint, self.workspace = checkpoint, workspace
        self.objective = objective_named(run.settings.objective)
        self._to_head = to_head
        self._last = max((block.layer for block in run.blocks), default=-1)
        if to_head:
            self._last = checkpoint.num_layers - 1
        self._probes: list[Batch] = []

    def measure(self) -> list[Measured]:
        """Walk the layers that no run before has finished; what is known of all blocks."""
        with evaluating(self.run.model):
            if self.recipe.probes and self.run.blocks:
                self._probes = self.run.probe_batches(self.positions_per_sequence())
            self.through_layers(layer_name, "collect and probe", self._pass_layer)
            if self._to_head:
                self.run.moments_at_head = self._moments_at_head()
        return [
            read_measured(block, self.workspace.folder / layer_name(block.layer), n)
            for n, block in enumerate(self.run.blocks)
        ]

    def through_layers(
        self, name: Callable[[int], str], stage: str, pass_layer: Callable[[int, Path], None]
    ) -> None:
        """Walk the layers that no run before has finished; what stands before them is in memory.

        Each is a piece of work with a `name`, whose time belongs to a `stage`. In the folder of
        the piece `pass_layer` leaves what enters the next layer.
        """
        run, checkpoint = self.run, self.checkpoint
        names = [name(number) for number in range(checkpoint.num_layers)]
        todo = [number for number, one in enumerate(names) if not self.workspace.done(one)]
        outside = checkpoint.outer_names(base=True, head=False)
        if todo:
            checkpoint.load(outside)
            checkpoint.release_embeddings()
        for number in todo:
            with (
                self.workspace.piece(names[number], run.stopwatch.seconds) as folder,
                run.stage(stage),
            ):
                pass_layer(number, folder)
            if number:
                self.workspace.forget(f"{names[number - 1]}/states")
        checkpoint.release(outside)

    def distances(self) -> list[float]:
        """Effect on the output of each block's probe, in the order of the blocks."""
        run = self.run
        variants = [_variant(block) for block in run.blocks]
        sums, count = dict.fromkeys(variants, 0.0), 0
        run.expect(len(self._probes) * len(sums))

        def output(stream: str, position: int, batch: Batch) -> Any:
            states = self.entering(layer_name, self.checkpoint.num_layers, stream, position)
            return self.behind_layers(batch, states)

        with run.stage("probe outputs"), evaluating(run.model), self.checkpoint.head():
            for position, batch in enumerate(self._probes):
                dense = output(DENSE, position, batch)
                for variant in sums:
                    pruned = output(variant, position, batch)
                    values = distances(self.objective, dense, pruned, batch)
                    sums[variant] += float(values.double().sum())
                    run.advance()
                count += values.numel()
        return [sums[variant] / max(count, 1) for variant in variants]

    def behind_layers(
        self, batch: Batch, states: States, model: PreTrainedModel | None = None
    ) -> Any:
        """The output of what is judged, where what the last layer returns is known.

        Of the run's model, or of one that has other things behind the layers.
        """
        reader = reader_of(self.run.model if model is None else model, self.objective)
        return run_rest(reader, self.checkpoint.num_layers, batch, states, self.checkpoint.device)

    def positions_per_sequence(self) -> float:
        """How many values the objective has for a sequence.

        Only the number counts, so that one layer stands for all.
        """
        if self.workspace.done("positions"):
            return float(read(self.workspace.folder / "positions" / "per_sequence.pt"))
        batches, checkpoint = self.run.calibration.batches, self.checkpoint
        batch = batches[len(batches) // 2]
        names = [*checkpoint.outer_names(base=True, head=False), *checkpoint.layer_names(0)]
        with self.run.stage("collect and probe"):
            with checkpoint.loaded(names):
                state = run_layer(self.run.model, 0, batch, {}, checkpoint.device)
            with checkpoint.head():
                output = self.behind_layers(batch, {0: state})
                positions = positions_of(output, batch, self.objective)
        with self.workspace.piece("positions") as folder:
            write(positions, folder / "per_sequence.pt")
        return positions

    def _moments_at_head(self) -> Tensor:
        """Second moments of what a head of its own reads of the calibration set."""
        run, checkpoint, workspace = self.run, self.checkpoint, self.workspace
        if not workspace.done(_AT_HEAD):
            head, last = own_head(run.model), checkpoint.num_layers

            def forward(position: int, batch: Batch) -> Any:
                states = self.entering(layer_name, last, CALIBRATION, position)
                return run_rest(run.model, last, batch, states, checkpoint.device)

            with workspace.piece(_AT_HEAD, run.stopwatch.seconds) as folder:
                with run.stage("collect at the head"), checkpoint.head():
                    batches = run.tracked(run.calibration.batches)
                    moments = head_moments(run.model, head, batches, forward)
                write(moments, folder / _MOMENTS)
        moments_at_head: Tensor = read(workspace.folder / _AT_HEAD / _MOMENTS)
        return moments_at_head

    def _pass_layer(self, number: int, folder: Path) -> None:
        """Take everything through one layer, and decompose its blocks."""
        run, checkpoint = self.run, self.checkpoint
        (folder / "states").mkdir()
        blocks = {n: block for n, block in enumerate(run.blocks) if block.layer == number}
        earlier = {_variant(block): None for block in run.blocks if block.layer < number}
        streams = [DENSE, *earlier] if self._probes else []
        if number == 0:
            write_embedded(checkpoint, run.calibration.batches, folder / "states")
        if number <= self._last:
            first, automatic = run.settings.first_precision, run.settings.precision == "auto"
            dependent = self._measure_blocks(number, blocks, folder, first, check=automatic)
            if dependent:
                self._measure_blocks(number, dependent, folder, "float64")
        probed: dict[str, list[FoldedConsumer]] = {}
        for folded in self._folded_probes(blocks, folder):
            probed.setdefault(_variant(folded.block), []).append(folded)
        names = checkpoint.layer_names(number)
        checkpoint.load(names if self._probes else [])
        run.expect(len(self._probes) * (len(streams) + len(probed)))
        with self._embeddings(number):
            for stream in streams:
                self._pass(number, stream, folder)
            for variant, members in probed.items():
                with replaced(run.model.base_model, members):
                    self._pass(number, DENSE, folder, to=variant)
        checkpoint.release(names)

    @contextmanager
    def _embeddings(self, number: int) -> Iterator[None]:
        """Token embeddings are in memory for the first layer, while probes go through it."""
        if number == 0 and self._probes:
            self.checkpoint.load(self.checkpoint.embedding_names())
        yield
        self.checkpoint.release_embeddings()

    def _pass(self, number: int, stream: str, folder: Path, *, to: str = "") -> None:
        """Take the probes' sequences of one stream through a layer."""
        for position, batch in enumerate(self._probes):
            states = self.entering(layer_name, number, stream, position)
            state = run_layer(self.run.model, number, batch, states, self.checkpoint.device)
            write(state, state_file(folder, to or stream, position))
            self.run.advance()

    def _measure_blocks(
        self,
        number: int,
        blocks: dict[int, Block],
        folder: Path,
        precision: str,
        *,
        check: bool = False,
    ) -> dict[int, Block]:
        """Leave the statistics of a layer's blocks in the folder, and their consumers in memory.

        Returns the blocks whose statistics need products in float64, where that is to be checked.
        """
        checkpoint = self.checkpoint
        names = checkpoint.layer_names(number)
        checkpoint.load(names)
        moments = self._collect(number, list(blocks.values()), folder, precision)
        # A decomposition takes more memory than anything else, and only the consumer's weight.
        every = self.run.blocks
        consumers = {checkpoint.weight_name(b.consumer) for b in every if b.layer == number}
        checkpoint.release(name for name in names if name not in consumers)
        dependent = {}
        for n, block in blocks.items():
            consumer = projection(self.run.model.base_model, block.consumer)
            known, centred = moments.pop(block.name), self.recipe.absorb_mean
            statistics = BlockStatistics.of(
                block, known, consumer, absorb_mean=centred, overwrite=True
            )
            write_statistics(statistics, folder, n)
            # The check takes memory, and not the weight.
            statistics = dataclasses.replace(statistics, weight=torch.empty(0))
            if check and statistics.has_dependence(overwrite=True):
                dependent[n] = block
        return dependent

    def _collect(
        self, number: int, blocks: Sequence[Block], folder: Path, precision: str
    ) -> dict[str, Moments]:
        """Take the calibration set through a layer; the moments of its blocks."""
        run, model, device = self.run, self.run.model, self.checkpoint.device
        collector = MomentsCollector(model.base_model, blocks, precision=precision, device=device)
        with collector:
            for position, batch in enumerate(run.tracked(run.calibration.batches)):
                collector.expect(batch)
                states = self.entering(layer_name, number, CALIBRATION, position)
                with embedded_before(model, folder / "states", position, device):
                    state = run_layer(model, number, batch, states, device)
                file = state_file(folder, CALIBRATION, position)
                if (number < self._last or self._to_head) and not file.exists():
                    write(state, file)
        return collector.moments

    def _folded_probes(self, blocks: dict[int, Block], folder: Path) -> list[FoldedConsumer]:
        """Decompose the blocks of a layer one by one, and fold what they are probed at."""
        probes = []
        for n, block in blocks.items():
            # The Gram matrix stays on the disk: each computation has the memory of a copy.
            copy_of = partial(read_statistics, self.run, block, folder, n, expendable=True)
            statistics = copy_of()
            energy = statistics.output_energy
            candidates = candidates_of(self.run, statistics, n)
            del statistics
            error = None
            if self._probes:
                probed = candidates.to_probe()
                folded = fold_candidate(self.recipe, copy_of(dtype=None), candidates, probed)
                probes.append(folded)
                error = folded.output_error
            write_measured(Measured(candidates, energy, probe_error=error), folder, n)
        return probes

    def entering(
        self, name: Callable[[int], str], number: int, stream: str, position: int
    ) -> States:
        """What enters a layer, or what comes behind the last; nothing is known before the first.

        `name` is that of `through_layers`.
        """
        if number == 0:
            return {}
        folder = self.workspace.folder / name(number - 1)
        return {0: read(state_file(folder, stream, position), self.checkpoint.device)}


def layer_name(number: int) -> str:
    """Of the piece of work that a layer is."""
    return f"layer-{number:04d}"


def _variant(block: Block) -> str:
    """The stream in which the block is pruned, with all experts of its set."""
    return f"without-{block.set_name}"


def state_file(folder: Path, stream: str, position: int) -> Path:
    """Of what a layer returns on a batch of a stream, in the layer's piece of work."""
    return folder / "states" / f"{stream}-{position}.pt"
