"""The last walk: fold the correction of each layer, cut it, and write it as a shard."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from stat_prune.checkpoints.layer_weights import Checkpoint
from stat_prune.choosing.folding import fold_candidate
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.pipeline.accounting import row_of
from stat_prune.pipeline.on_disk.measured import Measured
from stat_prune.pipeline.on_disk.walk import layer_name
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.stages import planned
from stat_prune.pipeline.workspace import Workspace, read_statistics
from stat_prune.reporting.block_row import BlockRow
from stat_prune.settings.methods import Method
from stat_prune.surgery.cut import apply

_ROWS = "rows.json"


class Cut:
    """What is to become of each block, and the layers that are written already.

    Parameters
    ----------
    run : Run
    recipe : Method
    checkpoint : Checkpoint
        Of the run's model, which gets the pruned shapes layer by layer, and no values.
    workspace : Workspace
        With the statistics of every layer.
    measured : sequence of Measured
    choice : sequence of int
        The candidate of each block.
    weights : sequence of float, optional
        Effect on the output for each unit of a block's relative squared error.
    """

    def __init__(
        self,
        run: Run,
        recipe: Method,
        checkpoint: Checkpoint,
        workspace: Workspace,
        measured: Sequence[Measured],
        choice: Sequence[int],
        weights: Sequence[float] | None,
    ) -> None:
        self.run, self.recipe = run, recipe
        self.checkpoint, self.workspace = checkpoint, workspace
        self.measured, self.choice, self.weights = measured, choice, weights

    @property
    def units(self) -> dict[str, list[int]]:
        """By block name, the units that stay."""
        pairs = zip(self.measured, self.choice, strict=True)
        return {one.candidates.block.name: one.candidates.units(i).tolist() for one, i in pairs}

    def write_layers(self) -> list[BlockRow]:
        """Write the layers that no run before has written; a row for each block."""
        rows: list[BlockRow] = []
        with gathered_numerical_warnings("folding the correction"):
            for layer in self.run.tracked(range(self.checkpoint.num_layers)):
                numbers = [n for n, block in enumerate(self.run.blocks) if block.layer == layer]
                if self.workspace.done(_name(layer)):
                    apply(self.run.model, [one for n in numbers for one in self._shape(n)])
                else:
                    with (
                        self.workspace.piece(_name(layer), self.run.stopwatch.seconds) as folder,
                        self.run.stage("fold and cut"),
                    ):
                        self._write_layer(layer, numbers, folder)
                text = (self.workspace.folder / _name(layer) / _ROWS).read_text(encoding="utf-8")
                rows += [BlockRow(**row) for row in json.loads(text)]
        return rows

    def shards(self) -> list[Path]:
        """The weights of each layer."""
        return [
            self.workspace.folder / _name(layer) / SAFE_WEIGHTS_NAME
            for layer in range(self.checkpoint.num_layers)
        ]

    def _write_layer(self, layer: int, numbers: Sequence[int], folder: Path) -> None:
        checkpoint, model = self.checkpoint, self.run.model
        names = checkpoint.layer_names(layer)
        # Folding takes more memory than cutting, and only the consumers' weights.
        consumers = [checkpoint.weight_name(self.run.blocks[n].consumer) for n in numbers]
        checkpoint.load(consumers)
        rows, folded = [], []
        for n in numbers:
            one = self._folded(n)
            sensitivity = self.weights[n] if self.weights else None
            plan = planned(one, self.measured[n].candidates, self.choice[n], sensitivity)
            rows.append(dataclasses.asdict(row_of(plan)))
            folded.append(one)
        checkpoint.load(name for name in names if name not in consumers)
        apply(model, folded)
        # Written as transformers writes weights, whatever it calls them on disk.
        with _without_progress_bars():
            model.save_pretrained(folder / "saved", state_dict=checkpoint.state_dict(names))
        (folder / "saved" / SAFE_WEIGHTS_NAME).rename(folder / SAFE_WEIGHTS_NAME)
        shutil.rmtree(folder / "saved")
        (folder / _ROWS).write_text(json.dumps(rows), encoding="utf-8")
        checkpoint.release(names)

    def _folded(self, number: int) -> FoldedConsumer:
        block, sizes = self.run.blocks[number], self.measured[number].candidates
        folder = self.workspace.folder / layer_name(block.layer)
        statistics = read_statistics(self.run, block, folder, number, expendable=True, dtype=None)
        return fold_candidate(self.recipe, statistics, sizes, self.choice[number])

    def _shape(self, number: int) -> list[FoldedConsumer]:
        """A folded consumer without values, where the block loses anything.

        Only a consumer that has a bias gets one folded into it, so that no shape depends on that.
        """
        block = self.run.blocks[number]
        units = self.measured[number].candidates.units(self.choice[number])
        if len(units) == block.num_units:
            return []
        size = (block.output_size, len(units) * block.unit_size)
        weight = torch.empty(size, dtype=torch.float64, device="meta")
        return [FoldedConsumer(block, units, weight, bias=None, output_error=0.0)]


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Transformers shows none inside: the run's own counts the layers."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _name(layer: int) -> str:
    """Of the piece of work that a written layer is."""
    return f"pruned-{layer:04d}"
