"""A checkpoint on disk, as a source of the pipeline: one layer's weights in memory at a time."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from stat_prune.checkpoints.beside import note_source
from stat_prune.checkpoints.checkpoint import as_pruned_class, save_checkpoint
from stat_prune.checkpoints.layer_weights import Checkpoint
from stat_prune.checkpoints.replacing import PLAN_FILE, REPORT_FILE
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.folding import fold_candidate
from stat_prune.choosing.measured import Measured
from stat_prune.choosing.plan import BlockPlan
from stat_prune.errors import SaveError
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.pipeline.accounting import row_of
from stat_prune.pipeline.budgeting.sharing import factor_as, tables_to_factor
from stat_prune.pipeline.on_disk.comparing import Comparison
from stat_prune.pipeline.on_disk.layer_pass import LayerPass, layer_name
from stat_prune.pipeline.one_block import planned
from stat_prune.pipeline.resuming import FinishedWork
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.saving import Output
from stat_prune.pipeline.sources import CutModel, Decided, Probed, Searching
from stat_prune.pipeline.workspace import read, read_statistics, write
from stat_prune.reporting.block_row import BlockRow
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.result import PrunedCheckpoint
from stat_prune.reporting.what_was_done import what_was_done
from stat_prune.surgery.cut import apply

_ROWS = "rows.json"

#: The piece of work with what the probes do, and the file in it.
_PROBED, _DISTANCES = "distances", "distances.pt"


class StoredModel:
    """A checkpoint on disk: statistics are in the working folder, pruned layers too.

    Parameters
    ----------
    run : Run
    work : FinishedWork
        With a folder.
    checkpoint : Checkpoint
        Of the run's model, which gets the pruned shapes layer by layer, and no values.
    output : Output
    budget : Budget
        The only one.
    predicted_peak_memory : int
        Bytes.
    """

    def __init__(
        self,
        run: Run,
        work: FinishedWork,
        checkpoint: Checkpoint,
        output: Output,
        budget: Budget,
        predicted_peak_memory: int,
    ) -> None:
        self.run, self.workspace, self.checkpoint = run, work.workspace, checkpoint
        self.predicted_peak_memory: int | None = predicted_peak_memory
        self._work, self._output = work, output
        to_head = any(one.of_head for one in tables_to_factor(run.model, budget))
        self._walk = LayerPass(run, checkpoint, self.workspace, to_head=to_head)

    def measure(self) -> list[Measured]:
        """Sizes of each block, and its error as it is probed."""
        return self._walk.measure()

    def probe(self, measured: Sequence[Measured], choice: Sequence[int]) -> list[Probed]:
        """What each block does, pruned alone to `Candidates.to_probe`, as the walk has it."""
        assert list(choice) == [one.candidates.to_probe() for one in measured]
        workspace = self.workspace
        if not workspace.done(_PROBED):
            with workspace.piece(_PROBED, self.run.stopwatch.seconds) as folder:
                write(self._walk.distances(), folder / _DISTANCES)
        workspace.forget(f"{layer_name(self.checkpoint.num_layers - 1)}/states")
        distances = read(workspace.folder / _PROBED / _DISTANCES)
        pairs = zip(distances, measured, strict=True)
        return [Probed(distance, one.probe_error or 0.0) for distance, one in pairs]

    def search(self, measured: Sequence[Measured]) -> Comparison:
        """What compares whole pruned models."""
        return Comparison(self._walk, measured)

    def shared(
        self, search: Searching, fold: Callable[[Sequence[int], Budget], Decided]
    ) -> Comparison:
        """What compares shares of a joint budget, which nothing is solved again for."""
        assert isinstance(search, Comparison)
        return search

    def fold(self, measured: Sequence[Measured], choice: Sequence[int]) -> Decided:
        """What each layer is folded to when it is cut."""
        sizes = [one.candidates.size(i) for one, i in zip(measured, choice, strict=True)]
        return Decided(sizes, measured=measured, choice=choice)

    def solve_again(self, decided: Decided, budget: Budget) -> Decided:
        """Nothing: layers are corrected as they are cut, once."""
        return decided

    def cut(self, budget: Budget, decided: Decided) -> CutModel:
        """Write each layer, load what is in none, and factor embeddings as a budget says."""
        if budget.of_head < 1 and not self.run.blocks:
            self.measure()  # what the head reads
        rows, model = self._write_layers(decided), self.run.model
        self.checkpoint.load(self._outer())
        embeddings, head = factor_as(self.run, budget, model)
        pairs = zip(decided.measured, decided.choice, strict=True)
        units = {one.block.name: one.candidates.units(i).tolist() for one, i in pairs}
        as_pruned_class(model)
        return CutModel(model, rows, units, embeddings, head)

    def result(self, budget: Budget, cut: CutModel, report: PruningReport) -> PrunedCheckpoint:
        """Make one folder of it."""
        note_source(cut.model, self.checkpoint.folder)
        try:
            save_checkpoint(
                self._output.directory,
                model=cut.model,
                tokenizer=self.run.tokenizer,
                files={REPORT_FILE: report.to_json(), PLAN_FILE: json.dumps(cut.units)},
                overwrite=self._output.overwrite,
                state_dict=self.checkpoint.outer_state(),
                shards=self._shards(),
                run=self._work.fingerprint(budget.target),
                account=what_was_done(report),
            )
        except SaveError as error:
            raise SaveError(
                f"{error} What was finished is kept in {str(self.workspace.folder)!r}: go on with "
                "resume=True (--resume)."
            ) from error
        source = str(self.checkpoint.folder)
        return PrunedCheckpoint(Path(self._output.directory), report, cut.units, source)

    def _outer(self) -> list[str]:
        """What is in no layer."""
        return self.checkpoint.outer_names(base=True, head=True)

    def _write_layers(self, decided: Decided) -> list[BlockRow]:
        """Write the layers that no run before has written; a row for each block."""
        rows: list[BlockRow] = []
        with gathered_numerical_warnings("folding the correction"):
            for layer in self.run.tracked(range(self.checkpoint.num_layers)):
                numbers = [n for n, block in enumerate(self.run.blocks) if block.layer == layer]
                if self.workspace.done(_name(layer)):
                    apply(self.run.model, [one for n in numbers for one in _shape(decided, n)])
                else:
                    with (
                        self.workspace.piece(_name(layer), self.run.stopwatch.seconds) as folder,
                        self.run.stage("fold and cut"),
                    ):
                        self._write_layer(layer, numbers, decided, folder)
                text = (self.workspace.folder / _name(layer) / _ROWS).read_text(encoding="utf-8")
                rows += [BlockRow(**row) for row in json.loads(text)]
        return rows

    def _shards(self) -> list[Path]:
        """The weights of each layer."""
        return [
            self.workspace.folder / _name(layer) / SAFE_WEIGHTS_NAME
            for layer in range(self.checkpoint.num_layers)
        ]

    def _write_layer(
        self, layer: int, numbers: Sequence[int], decided: Decided, folder: Path
    ) -> None:
        checkpoint, model = self.checkpoint, self.run.model
        names = checkpoint.layer_names(layer)
        # Folding takes more memory than cutting, and only the consumers' weights.
        consumers = [checkpoint.weight_name(self.run.blocks[n].consumer) for n in numbers]
        checkpoint.load(consumers)
        rows, folded = [], []
        for n in numbers:
            plan = self._plan(decided, n)
            rows.append(dataclasses.asdict(row_of(plan)))
            folded.append(plan.folded)
        checkpoint.load(name for name in names if name not in consumers)
        apply(model, folded)
        # Written as transformers writes weights, whatever it calls them on disk.
        with _without_progress_bars():
            model.save_pretrained(folder / "saved", state_dict=checkpoint.state_dict(names))
        (folder / "saved" / SAFE_WEIGHTS_NAME).rename(folder / SAFE_WEIGHTS_NAME)
        shutil.rmtree(folder / "saved")
        (folder / _ROWS).write_text(json.dumps(rows), encoding="utf-8")
        checkpoint.release(names)

    def _plan(self, decided: Decided, number: int) -> BlockPlan:
        block, one, index = (
            self.run.blocks[number],
            decided.measured[number],
            decided.choice[number],
        )
        folder = self.workspace.folder / layer_name(block.layer)
        statistics = read_statistics(self.run, block, folder, number, expendable=True, dtype=None)
        folded = fold_candidate(self.run.settings.recipe, statistics, one.candidates, index)
        return planned(folded, one, index)


def _shape(decided: Decided, number: int) -> list[FoldedConsumer]:
    """A folded consumer without values, where the block loses anything.

    Only a consumer that has a bias gets one folded into it, so that no shape depends on that.
    """
    candidates = decided.measured[number].candidates
    block, units = candidates.block, candidates.units(decided.choice[number])
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
