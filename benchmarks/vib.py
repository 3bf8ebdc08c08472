"""The second stage beside the first, and beside plain fine-tuning: what labels and time buy.

    STAT_PRUNE_DATA=... python benchmarks/vib.py --task mrpc --kept 0.5 --steps 60

Every (task, method, kept fraction, steps, seed) is one record on disk; a run that is broken off
goes on where it was. Word embeddings are frozen and the learning rate is 1e-4, as when the
checkpoints were made. Steps count batches of `--batch-size`; methods with two rounds of training
spend half in each, and masks alone a fifth.
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
from stat_prune.result import PruningResult
from stat_prune.targets import MACs
from stat_prune.vib import MODES, VIBConfig, vib_finetune
from tasks import TASKS, Task

Record = dict[str, Any]


class Cell:
    """What every method is given.

    Parameters
    ----------
    task : Task
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
        self, task: Task, kept: float, steps: int, batch_size: int, limit: int | None, seed: int
    ) -> None:
        self.task, self.kept, self.steps, self.batch_size = task, kept, steps, batch_size
        self.seed = seed
        self.model, self.tokenizer = task.load()
        embeddings: Any = self.model.get_input_embeddings()
        embeddings.weight.requires_grad_(False)
        self.data = task.calibration()
        random.Random(seed).shuffle(self.data)
        self.data = self.data[:limit]

    def pruned(self, kept: float | None = None) -> PruningResult:
        """STAT, without labels or training."""
        return stat_prune.prune(
            self.model,
            self.data,
            target=self.task.target(kept or self.kept),
            tokenizer=self.tokenizer,
            num_calibration_samples=self.task.num_calibration_samples,
            seed=self.seed,
            progress=False,
        )

    def finetuned(
        self, start: PreTrainedModel, kept: float, config: VIBConfig, **settings: Any
    ) -> PruningResult:
        """The second stage on a model."""
        dense: Any = self.model
        trained = {name: p.requires_grad for name, p in dense.named_parameters()}
        for name, parameter in start.named_parameters():
            parameter.requires_grad_(trained[name])
        target = self.task.target(kept)
        return vib_finetune(
            start,
            self.data,
            target=target,
            mode=replace(config, batch_size=self.batch_size, learning_rate=1e-4),
            teacher=dense,
            tokenizer=self.tokenizer,
            seed=self.seed,
            **settings,
        )


def full(cell: Cell) -> PruningResult:
    config = replace(MODES["full"], mask_steps=cell.steps // 2, finetune_steps=cell.steps // 2)
    return cell.finetuned(cell.model, cell.kept, config)


def fast(cell: Cell) -> PruningResult:
    config = replace(MODES["fast"], mask_steps=cell.steps // 2, finetune_steps=cell.steps // 2)
    return cell.finetuned(cell.model, cell.kept, config)


def masks(cell: Cell, folding: str = "corrected") -> PruningResult:
    steps = max(cell.steps // 5, 1)
    config = replace(MODES["masks"], mask_steps=steps, folding=folding)  # type: ignore[arg-type]
    return cell.finetuned(cell.model, cell.kept, config, labels=False)


def masks_uncorrected(cell: Cell) -> PruningResult:
    return masks(cell, "means")


def full_corrected(cell: Cell) -> PruningResult:
    config = replace(MODES["full"], mask_steps=cell.steps // 2, finetune_steps=cell.steps // 2)
    return cell.finetuned(cell.model, cell.kept, replace(config, folding="corrected-means"))


def stat(cell: Cell) -> PruningResult:
    return cell.pruned()


def stat_distilled(cell: Cell) -> PruningResult:
    config = replace(MODES["full"], finetune_steps=cell.steps)
    return cell.finetuned(cell.pruned().model, 1.0, config)


def stat_finetuned(cell: Cell) -> PruningResult:
    config = replace(MODES["full"], finetune_steps=cell.steps, logit_weight=0.0, hidden_weight=0.0)
    return cell.finetuned(cell.pruned().model, 1.0, config)


def stat_halfway(cell: Cell) -> PruningResult:
    """STAT to half of what is to go, masks for the other half."""
    halfway = (1 + cell.kept) / 2
    config = replace(MODES["full"], mask_steps=cell.steps // 2, finetune_steps=cell.steps // 2)
    return cell.finetuned(cell.pruned(halfway).model, cell.kept / halfway, config)


METHODS: dict[str, Callable[[Cell], PruningResult]] = {
    "stat": stat,
    "stat, then fine-tuning": stat_finetuned,
    "stat, then distillation": stat_distilled,
    "stat halfway, then vib": stat_halfway,
    "vib, full": full,
    "vib, full, corrected": full_corrected,
    "vib, fast": fast,
    "vib, masks": masks,
    "vib, masks, uncorrected": masks_uncorrected,
}


def measure(name: str, method: str, cell: Cell) -> Record:
    """One model and its score."""
    dense = cell.task.score(cell.model, cell.tokenizer)
    start, seconds = time.perf_counter(), time.process_time()
    with FlopCounterMode(display=False) as counter:
        result = METHODS[method](cell)
    spent = {
        "flops": counter.get_total_flops(),
        "cpu_seconds": time.process_time() - seconds,
        "seconds": time.perf_counter() - start,
    }
    return {
        "task": name,
        "method": method,
        "kept": cell.kept,
        "steps": cell.steps,
        "batch_size": cell.batch_size,
        "examples": len(cell.data),
        "seed": cell.seed,
        "metric": cell.task.metric,
        "dense": dense,
        "score": cell.task.score(result.model, cell.tokenizer),
        "kept_macs": kept_macs(cell, result.model),
        **spent,
        "settings": result.report.settings,
        "versions": result.report.versions,
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
            return Cell(TASKS[name](), fraction, steps, batch_size, limit, seed)

        key = f"{fraction:g}-{steps}x{batch_size}-{limit or 'all'}-{seed}"
        records.append(record_of(output, name, chosen, make, key))
    table = markdown(records)
    (output / "vib.md").write_text(table)
    print(table)


if __name__ == "__main__":
    typer.run(main)
