"""The second stage beside the first, and beside plain fine-tuning: what labels and time buy.

    STAT_PRUNE_DATA=... python benchmarks/vib.py --task mrpc --kept 0.5 --steps 60

Every (task, method, kept fraction, steps, seed) is one record on disk; a run that is broken off
goes on where it was. Word embeddings are frozen and the learning rate is 1e-4, as when the
checkpoints were made. Steps count batches of `--batch-size`; methods with two rounds of training
spend half in each, and masks alone a sixteenth, as by default.

PFLOP are of the whole second stage: the matrix products of the student forwards and backwards, of
the teacher forwards and of the correction after the cut, on batches as they are, padding included;
attention's count, and scoring does not. They are counted while it runs (`FlopCounterMode`). CPU
seconds are of the same.

Scores are of the dev split. To choose between settings, score on training examples that no method
has seen instead: `--held-out 1000`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm
from transformers import PreTrainedModel

import stat_prune
from glue import glue_task
from harness.sources import find_model
from harness.task import Task
from stat_prune.accounting import measure as measure_size
from stat_prune.evaluation.glue import GLUE_TASKS, GlueData, evaluate_glue
from stat_prune.report import REPORT_FILE
from stat_prune.vib import MODES, VIBConfig, vib_finetune
from tasks import STORIES, TASKS, read_stories

Record = dict[str, Any]
#: A model, how it was made, and what the second stage took.
Result = tuple[PreTrainedModel, dict[str, Any], dict[str, float]]

#: What torch counts on a GPU, under the names that it has on a CPU; shapes come first.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda *shapes, **_: sdpa_flop_count(*shapes[:3])
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}


class Cell:
    """What every method is given.

    Parameters
    ----------
    name : str
        Of the task.
    folder : Path
        For models that several methods start from.
    model : str
    kept : float
        Fraction of the dense model's MACs.
    steps : int
        Of training, in all.
    batch_size : int
    limit : int or None
        Training examples.
    held_out : int
        Training examples that are scored in place of the dev split, and that no method sees.
    seed : int
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        model: str,
        kept: float,
        steps: int,
        batch_size: int,
        limit: int | None,
        held_out: int,
        seed: int,
    ) -> None:
        self.name, self.folder, self.kept, self.seed = name, folder, kept, seed
        self.steps, self.batch_size = steps, batch_size
        self.task = task_of(name, model)
        self.model, self.tokenizer = self.task.load()
        embeddings: Any = self.model.get_input_embeddings()
        embeddings.weight.requires_grad_(False)
        data = list(self.task.calibration())
        random.Random(seed).shuffle(data)
        self.held, self.data = data[:held_out], data[held_out:][:limit]

    def score(self, model: PreTrainedModel) -> float:
        """Of the dev split, or of what is held out."""
        if not self.held:
            return self.task.score(model, self.tokenizer)[self.task.metric]
        texts = [tuple(row[name] for name in GLUE_TASKS[self.name].columns) for row in self.held]
        held = GlueData(
            [text if len(text) == 2 else text[0] for text in texts],
            np.array([row["label"] for row in self.held]),
        )
        return evaluate_glue(model, self.tokenizer, self.name, held)[self.task.metric]

    @cached_property
    def dense(self) -> float:
        """The dense model's score."""
        return self.score(self.model)

    def pruned(self, kept: float | None = None) -> Result:
        """STAT, without labels or training; pruned once for all methods that start there."""
        fraction = kept or self.kept
        sizes = f"{len(self.data)}-{len(self.held)}-{self.seed}"
        place = self.folder / f"stat-{self.name}-{fraction:g}-{sizes}"
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
        return stat_prune.load(place), report["settings"], {"flops": 0.0, "cpu_seconds": 0.0}

    def finetuned(
        self, start: PreTrainedModel, kept: float, config: VIBConfig, **settings: Any
    ) -> Result:
        """The second stage on a model; what it takes is counted."""
        dense: Any = self.model
        trained = {name: p.requires_grad for name, p in dense.named_parameters()}
        for name, parameter in start.named_parameters():
            parameter.requires_grad_(trained[name])
        seconds = time.process_time()
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
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
        spent = {
            "flops": float(counter.get_total_flops()),
            "cpu_seconds": time.process_time() - seconds,
        }
        return result.model, result.report.settings, spent


def task_of(name: str, model: str) -> Task:
    """A task of GLUE, or the stories, of which all are trained on that are not scored."""
    if name == STORIES:
        return replace(
            TASKS[name](), calibration=lambda: [*read_stories()[:200], *read_stories()[400:]]
        )
    scale = 0.2 if name == "stsb" else 1.0  # the checkpoint predicts a fifth of the score
    return glue_task(name, model=find_model(model), label_scale=scale)


def split(cell: Cell, mode: str, **fields: Any) -> VIBConfig:
    """Half of the steps for the masks, half for the pruned model."""
    half = cell.steps // 2
    return replace(MODES[mode], mask_steps=half, finetune_steps=half, **fields)


def masks_alone(cell: Cell, **fields: Any) -> Result:
    """A sixteenth of the steps, and no labels."""
    config = replace(MODES["masks"], mask_steps=max(cell.steps // 16, 1), **fields)
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
    "vib, full, sublayers": lambda cell: vib(cell, "full", sublayers=True),
    "vib, fast": lambda cell: vib(cell, "fast"),
    "vib, masks": masks_alone,
    "vib, masks, uncorrected": lambda cell: masks_alone(cell, folding="means"),
}


def measure(method: str, cell: Cell) -> Record:
    """One model and its score."""
    model, settings, spent = METHODS[method](cell)
    known = GLUE_TASKS.get(cell.name)
    length = known.average_length if known else None
    before, after = (measure_size(one, length or 1.0) for one in (cell.model, model))
    kept = after.block_macs / before.block_macs
    if not known:
        kept = after.block_parameters / before.block_parameters
    return {
        "task": cell.name,
        "method": method,
        "kept": cell.kept,
        "steps": cell.steps,
        "batch_size": cell.batch_size,
        "examples": len(cell.data),
        "held_out": len(cell.held),
        "seed": cell.seed,
        "metric": cell.task.metric,
        "dense": cell.dense,
        "score": cell.score(model),
        "kept_cost": kept,
        **spent,
        "settings": settings,
    }


def record_of(path: Path, method: str, make: Callable[[], Cell]) -> Record:
    """The record on disk, or a new measurement that is then on disk."""
    if path.exists():
        return json.loads(path.read_text())
    record = measure(method, make())
    partial = path.with_suffix(".partial")  # a record on disk is a whole one
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
    return record


def priced(task: str) -> str:
    """What a fraction is of."""
    return "parameters" if task == STORIES else "MACs"


def markdown(records: list[Record]) -> str:
    """A table a task and kept fraction."""
    parts = []
    for task, kept in dict.fromkeys((record["task"], record["kept"]) for record in records):
        rows = [row for row in records if (row["task"], row["kept"]) == (task, kept)]
        first = rows[0]
        place = f"{first['held_out']} held-out training examples" if first["held_out"] else "dev"
        parts += [
            f"**{task}** at {kept:g} of the blocks' {priced(task)}: {first['metric']} on {place}, "
            f"dense {first['dense']:.4f}; {first['steps']} steps of {first['batch_size']} from "
            f"{first['examples']} examples, seed {first['seed']}.",
            "",
            "| method | score | kept | PFLOP | CPU seconds |",
            "| --- | --- | --- | --- | --- |",
        ]
        parts += [
            f"| {row['method']} | {row['score']:.4f} | {row['kept_cost']:.4f} | "
            f"{row['flops'] / 1e15:.4f} | {row['cpu_seconds']:.0f} |"
            for row in rows
        ]
        parts.append("")
    return "\n".join(parts)


def main(
    task: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join([*GLUE_TASKS, STORIES])}.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A folder, a name below models/, or a Hub name; {task} is replaced.")
    ] = "minilm-{task}",
    method: Annotated[list[str] | None, typer.Option(help=f"Of {'; '.join(METHODS)}.")] = None,
    kept: Annotated[list[float] | None, typer.Option(help="Kept fractions.")] = None,
    steps: Annotated[int, typer.Option(help="Of training, in all.")] = 400,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    limit: Annotated[int | None, typer.Option(help="Training examples; default: all.")] = None,
    held_out: Annotated[
        int, typer.Option(help="Score on so many training examples set apart, not on dev.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for records and table.")] = Path(
        "results/vib"
    ),
) -> None:
    """Measure and tabulate."""
    if held_out and STORIES in (task or []):
        raise typer.BadParameter("is for classification tasks", param_hint="--held-out")
    output.mkdir(parents=True, exist_ok=True)
    records = []
    grid = [(name, fraction) for name in task or ["mrpc"] for fraction in kept or [0.5, 0.3]]
    methods = method or list(METHODS)
    with tqdm(total=len(grid) * len(methods), desc="vib") as bar:
        for name, fraction in grid:

            @cache  # loaded when a record is missing, and once for all methods
            def make(name: str = name, fraction: float = fraction) -> Cell:
                return Cell(
                    name,
                    output,
                    model=model.format(task=name),
                    kept=fraction,
                    steps=steps,
                    batch_size=batch_size,
                    limit=limit,
                    held_out=held_out,
                    seed=seed,
                )

            for chosen in methods:
                sizes = f"{steps}x{batch_size}-{limit or 'all'}-{held_out}-{seed}"
                label = chosen.replace(", ", "-").replace(" ", "_")
                path = output / f"{name}-{fraction:g}-{sizes}-{label}.json"
                records.append(record_of(path, chosen, make))
                bar.update()
    table = markdown(records)
    (output / "vib.md").write_text(table)
    print(table)


if __name__ == "__main__":
    typer.run(main)
