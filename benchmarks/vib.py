"""The second stage beside the first, and beside plain fine-tuning: what labels and time buy.

    STAT_PRUNE_DATA=... python benchmarks/vib.py --task mrpc --kept 0.5 --steps 60

Every (task, method, kept fraction, steps, seed) is one record on disk; a run that is broken off
goes on where it was. Word embeddings are frozen and the learning rate is 1e-4, as when the
checkpoints were made. Steps count batches of `--batch-size`; methods with two rounds of training
spend half in each, and masks alone a fifth. PFLOP and seconds are those of the second stage.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import PreTrainedModel

import stat_prune
from stat_prune.accounting import measure as measure_size
from stat_prune.report import REPORT_FILE
from stat_prune.targets import MACs
from stat_prune.vib import MODES, VIBConfig, vib_finetune
from tasks import TASKS

Record = dict[str, Any]
#: A model and how it was made.
Result = tuple[PreTrainedModel, dict[str, Any]]


class Cell:
    """What every method is given.

    Parameters
    ----------
    name : str
    folder : Path
        For models that several methods start from.
    kept : float
        Fraction of the dense model's MACs.
    steps : int
        Of training, in all.
    batch_size : int
    limit : int or None
        Training examples.
    seed : int
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        kept: float,
        steps: int,
        batch_size: int,
        limit: int | None,
        seed: int,
    ) -> None:
        self.name, self.folder, self.kept, self.seed = name, folder, kept, seed
        self.steps, self.batch_size = steps, batch_size
        self.task = TASKS[name]()
        self.spent = {"flops": 0.0, "cpu_seconds": 0.0}
        self.model, self.tokenizer = self.task.load()
        embeddings: Any = self.model.get_input_embeddings()
        embeddings.weight.requires_grad_(False)
        self.data = self.task.calibration()
        random.Random(seed).shuffle(self.data)
        self.data = self.data[:limit]

    def pruned(self, kept: float | None = None) -> Result:
        """STAT, without labels or training; pruned once for all methods that start there."""
        fraction = kept or self.kept
        place = self.folder / f"stat-{self.name}-{fraction:g}-{len(self.data)}-{self.seed}"
        if not place.is_dir():
            result = stat_prune.prune(
                self.model,
                self.data,
                target=self.task.target(fraction),
                tokenizer=self.tokenizer,
                num_calibration_samples=self.task.num_calibration_samples,
                seed=self.seed,
                progress=False,
            )
            result.save(place)
        report = json.loads((place / REPORT_FILE).read_text())
        return stat_prune.load(place), report["settings"]

    def finetuned(
        self, start: PreTrainedModel, kept: float, config: VIBConfig, **settings: Any
    ) -> Result:
        """The second stage on a model; what it takes is counted."""
        dense: Any = self.model
        trained = {name: p.requires_grad for name, p in dense.named_parameters()}
        for name, parameter in start.named_parameters():
            parameter.requires_grad_(trained[name])
        seconds = time.process_time()
        with FlopCounterMode(display=False) as counter:
            result = vib_finetune(
                start,
                self.data,
                target=self.task.target(kept),
                mode=replace(config, batch_size=self.batch_size, learning_rate=1e-4),
                teacher=dense,
                tokenizer=self.tokenizer,
                seed=self.seed,
                **settings,
            )
        self.spent = {
            "flops": counter.get_total_flops(),
            "cpu_seconds": time.process_time() - seconds,
        }
        return result.model, result.report.settings


def split(cell: Cell, mode: str, **fields: Any) -> VIBConfig:
    """Half of the steps for the masks, half for the pruned model."""
    half = cell.steps // 2
    return replace(MODES[mode], mask_steps=half, finetune_steps=half, **fields)


def masks_alone(cell: Cell, **fields: Any) -> Result:
    """A fifth of the steps, and no labels."""
    config = replace(MODES["masks"], mask_steps=max(cell.steps // 5, 1), **fields)
    return cell.finetuned(cell.model, cell.kept, config, labels=False)


def from_stat(cell: Cell, **fields: Any) -> Result:
    """All steps for the model that STAT pruned to the target."""
    config = replace(MODES["full"], finetune_steps=cell.steps, **fields)
    return cell.finetuned(cell.pruned()[0], 1.0, config)


def from_halfway(cell: Cell) -> Result:
    """STAT removes half of what is to go, masks the other half."""
    halfway = (1 + cell.kept) / 2
    start = cell.pruned(halfway)[0]
    return cell.finetuned(start, cell.kept / halfway, split(cell, "full"))


def vib(cell: Cell, mode: str, **fields: Any) -> Result:
    """Masks, cut and training from the dense model."""
    return cell.finetuned(cell.model, cell.kept, split(cell, mode, **fields))


METHODS: dict[str, Callable[[Cell], Result]] = {
    "stat": lambda cell: cell.pruned(),
    "stat, then fine-tuning": lambda cell: from_stat(cell, logit_weight=0.0, hidden_weight=0.0),
    "stat, then distillation": from_stat,
    "stat halfway, then vib": from_halfway,
    "vib, full": lambda cell: vib(cell, "full"),
    "vib, full, uncorrected": lambda cell: vib(cell, "full", folding="means"),
    "vib, fast": lambda cell: vib(cell, "fast"),
    "vib, masks": masks_alone,
    "vib, masks, uncorrected": lambda cell: masks_alone(cell, folding="means"),
}


def measure(name: str, method: str, cell: Cell) -> Record:
    """One model and its score."""
    model, settings = METHODS[method](cell)
    return {
        "task": name,
        "method": method,
        "kept": cell.kept,
        "steps": cell.steps,
        "batch_size": cell.batch_size,
        "examples": len(cell.data),
        "seed": cell.seed,
        "metric": cell.task.metric,
        "dense": cell.task.score(cell.model, cell.tokenizer),
        "score": cell.task.score(model, cell.tokenizer),
        "kept_macs": kept_macs(cell, model),
        **cell.spent,
        "settings": settings,
    }


def kept_macs(cell: Cell, pruned: PreTrainedModel) -> float:
    """Fraction of the dense model's MACs, or of its blocks' parameters where that is the target."""
    target = cell.task.target(cell.kept)
    length = target.seq_length if isinstance(target, MACs) and target.seq_length else 1.0
    before, after = (measure_size(model, length) for model in (cell.model, pruned))
    if isinstance(target, MACs):
        return after.block_macs / before.block_macs
    return after.block_parameters / before.block_parameters


def record_of(folder: Path, name: str, method: str, make: Callable[[], Cell], key: str) -> Record:
    """The record on disk, or a new measurement that is then on disk."""
    path = folder / f"{name}-{key}-{method.replace(', ', '-').replace(' ', '_')}.json"
    if path.exists():
        return json.loads(path.read_text())
    record = measure(name, method, make())
    partial = path.with_suffix(".partial")  # a record on disk is a whole one
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
    return record


def markdown(records: list[Record]) -> str:
    """A table a task and kept fraction."""
    parts = []
    for task, kept in dict.fromkeys((record["task"], record["kept"]) for record in records):
        rows = [row for row in records if (row["task"], row["kept"]) == (task, kept)]
        first = rows[0]
        parts += [
            f"**{task}** at {kept:g} of the blocks' MACs: {first['metric']}, dense "
            f"{first['dense']:.4f}; {first['steps']} steps of {first['batch_size']} from "
            f"{first['examples']} examples, seed {first['seed']}.",
            "",
            "| method | score | kept | PFLOP | CPU seconds |",
            "| --- | --- | --- | --- | --- |",
        ]
        parts += [
            f"| {row['method']} | {row['score']:.4f} | {row['kept_macs']:.4f} | "
            f"{row['flops'] / 1e15:.4f} | {row['cpu_seconds']:.0f} |"
            for row in rows
        ]
        parts.append("")
    return "\n".join(parts)


def main(
    task: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(TASKS)}.")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"Of {'; '.join(METHODS)}.")] = None,
    kept: Annotated[list[float] | None, typer.Option(help="Kept fractions.")] = None,
    steps: Annotated[int, typer.Option(help="Of training, in all.")] = 400,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    limit: Annotated[int | None, typer.Option(help="Training examples; default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for records and table.")] = Path(
        "results/vib"
    ),
) -> None:
    """Measure and tabulate."""
    output.mkdir(parents=True, exist_ok=True)
    cells = [
        (name, fraction, chosen)
        for name in task or ["mrpc"]
        for fraction in kept or [0.5, 0.3]
        for chosen in method or METHODS
    ]
    records = []
    for name, fraction, chosen in tqdm(cells, desc="vib"):

        def make(name: str = name, fraction: float = fraction) -> Cell:
            return Cell(
                name,
                output,
                kept=fraction,
                steps=steps,
                batch_size=batch_size,
                limit=limit,
                seed=seed,
            )

        key = f"{fraction:g}-{steps}x{batch_size}-{limit or 'all'}-{seed}"
        records.append(record_of(output, name, chosen, make, key))
    table = markdown(records)
    (output / "vib.md").write_text(table)
    print(table)


if __name__ == "__main__":
    typer.run(main)
