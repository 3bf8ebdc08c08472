"""GLUE: what is left of fine-tuned classifiers at a given cost.

    python benchmarks/glue.py --task sst2 --model textattack/bert-base-uncased-SST-2
    STAT_PRUNE_DATA=... python benchmarks/glue.py --task sst2 --task mrpc --method stat --budget 0.6

Scored on the dev split by the official metrics, calibrated on the train split, MACs counted at the
average lengths of Kwon et al. 2022 (CoLA and RTE have none there: at that of the calibration set).
Without STAT_PRUNE_DATA, data comes from the Hub.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import AutoModelForSequenceClassification

from harness import options
from harness.cells import Grid, run
from harness.sources import find_data, find_model, load
from harness.task import Task
from stat_prune import MACs
from stat_prune.evaluation.glue import GLUE_TASKS, evaluate_glue, glue_examples, read_glue


def glue_task(
    task: str,
    *,
    model: str,
    data: Path | None = None,
    budgets: tuple[float, ...] = (0.8, 0.6, 0.5, 0.4),
    samples: int = 512,
    limit: int | None = None,
    batch_size: int = 32,
    label_scale: float = 1.0,
    device: str | None = None,
    dtype: str = "float32",
) -> Task:
    """A task of GLUE for one model."""
    folder = find_data(data, "glue")
    return Task(
        metrics=GLUE_TASKS[task].metrics,
        num_calibration_samples=samples,
        budgets=budgets,
        target=partial(MACs, seq_length=GLUE_TASKS[task].average_length),
        load=lambda: load(
            find_model(model), AutoModelForSequenceClassification, device=device, dtype=dtype
        ),
        calibration=lambda: labelled(task, folder, label_scale),
        score=lambda network, tokenizer: evaluate_glue(
            network, tokenizer, task, folder, limit=limit, batch_size=batch_size
        ),
        conditions={
            "model": model,
            "scored on": "dev" if limit is None else f"{limit} of dev, evenly spaced",
            "calibrated on": f"{samples} examples of train",
            "MACs counted at (tokens)": GLUE_TASKS[task].average_length,
            "dtype": dtype,
        },
        unseen=lambda: read_glue(task, folder).texts,
    )


def labelled(task: str, folder: Path | None, scale: float) -> list[dict[str, Any]]:
    """The train split as records, in the order of its texts."""
    rows = glue_examples(task, folder)
    return [row | {"label": row["label"] * scale} for row in rows] if scale != 1 else rows


def main(
    task: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join(GLUE_TASKS)}. Default: all."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A folder, a name below models/, or a Hub name; {task} is replaced.")
    ] = "minilm-{task}",
    data: Annotated[
        Path | None, typer.Option(help="Folder with TASK/train.tsv and TASK/dev.tsv.")
    ] = None,
    method: options.Methods = None,
    budget: options.Budgets = None,
    seed: options.Seeds = None,
    effort: options.Effort = None,
    allocation: options.Allocation = None,
    finish: options.Finish = None,
    limit: options.Limit = None,
    samples: options.Samples = 512,
    label_scale: Annotated[
        float,
        typer.Option(
            help="Labels are multiplied with it for methods that read them: 0.2 for an STS-B model "
            "that predicts a fifth of the score."
        ),
    ] = 1.0,
    batch_size: options.BatchSize = 32,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    output: options.Output = Path("results/glue"),
) -> None:
    """Measure, tabulate and draw."""
    unknown = set(task or ()) - set(GLUE_TASKS)
    if unknown:
        raise typer.BadParameter(f"{sorted(unknown)} are none of {', '.join(GLUE_TASKS)}")
    tasks = {
        name: partial(
            glue_task,
            name,
            model=model.format(task=name),
            data=data,
            samples=samples,
            limit=limit,
            batch_size=batch_size,
            label_scale=label_scale,
            device=device,
            dtype=dtype,
        )
        for name in task or GLUE_TASKS
    }
    run(
        "glue",
        tasks,
        Grid(method, seed or [0], budget),
        output,
        settings=options.settings_of(effort, allocation, finish),
    )


if __name__ == "__main__":
    typer.run(main)
