"""What is left of a model at a given cost: methods x budgets x tasks x seeds.

    STAT_PRUNE_DATA=... python benchmarks/retention.py --task encoder --method stat --method random

Every (task, method, seed) is one record on disk; a run that is broken off goes on where it was.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer
from tqdm.auto import tqdm

import stat_prune
from stat_prune.peers.slicegpt import slicegpt
from tasks import TASKS, Task

Record = dict[str, Any]


def measure(name: str, task: Task, method: str, budgets: Iterable[float], seed: int) -> Record:
    """Prune to all budgets at once and score each model."""
    model, tokenizer = task.load()
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "targets": [task.target(kept) for kept in budgets],
        "num_calibration_samples": task.num_calibration_samples,
        "seed": seed,
        "progress": False,
    }
    if method == "slicegpt":
        results = slicegpt(model, task.calibration(), **settings)
    else:
        results = stat_prune.prune_family(model, task.calibration(), method=method, **settings)
    return {
        "task": name,
        "method": method,
        "seed": seed,
        "metric": task.metric,
        "dense": task.score(model, tokenizer),
        "scores": {
            f"{kept:g}": task.score(result.model, tokenizer)
            for kept, result in zip(budgets, results, strict=True)
        },
        "settings": results[0].report.settings,
        "versions": results[0].report.versions,
    }


def record_of(
    folder: Path, name: str, task: Task, method: str, budgets: tuple[float, ...], seed: int
) -> Record:
    """The record on disk, or a new measurement that is then on disk."""
    path = folder / f"{name}-{method}-{seed}.json"
    if path.exists():
        record = json.loads(path.read_text())
        if {f"{kept:g}" for kept in budgets} <= record["scores"].keys():
            return record
    record = measure(name, task, method, budgets, seed)
    partial = path.with_suffix(".partial")  # a record on disk is a whole one
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
    return record


def markdown(records: list[Record]) -> str:
    """A table a task: mean over seeds, and the standard error where there are several."""
    parts = []
    for task in dict.fromkeys(record["task"] for record in records):
        rows = [record for record in records if record["task"] == task]
        budgets = sorted({float(kept) for row in rows for kept in row["scores"]}, reverse=True)
        seeds = sorted({row["seed"] for row in rows})
        parts += [
            f"**{task}**, {rows[0]['metric']}, dense {rows[0]['dense']:.4f}, "
            f"seeds {', '.join(map(str, seeds))}",
            "",
            "| method | " + " | ".join(f"{kept:g}" for kept in budgets) + " |",
            "| --- |" + " --- |" * len(budgets),
        ]
        for method in dict.fromkeys(row["method"] for row in rows):
            cells = [cell(rows, method, f"{kept:g}") for kept in budgets]
            parts.append(f"| {method} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def cell(rows: list[Record], method: str, kept: str) -> str:
    """Mean and standard error of one method at one budget."""
    values = [
        row["scores"][kept] for row in rows if row["method"] == method and kept in row["scores"]
    ]
    if not values:
        return ""
    digits = 4 if abs(values[0]) < 2 else 2
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def figure(records: list[Record]) -> plt.Figure:
    """Score against kept fraction, a panel a task and a line a method."""
    names = list(dict.fromkeys(record["task"] for record in records))
    fig, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), squeeze=False)
    styles = list(zip("os^Dvx", ["-", "--", "-.", ":", "-", "--"], strict=True))
    for axis, name in zip(axes[0], names, strict=True):
        rows = [record for record in records if record["task"] == name]
        for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            scores = [row["scores"] for row in rows if row["method"] == method]
            kept = sorted(scores[0], key=float)
            means = [statistics.mean(score[k] for score in scores) for k in kept]
            marker, line = styles[index % len(styles)]
            axis.plot([float(k) for k in kept], means, marker + line, label=method)
        axis.axhline(rows[0]["dense"], color="0.5", linewidth=0.8, label="dense")
        if rows[0]["metric"] == "perplexity":
            axis.set_yscale("log")
        axis.set(xlabel="kept fraction", ylabel=rows[0]["metric"], title=name)
    axes[0][0].legend(fontsize=7)
    fig.tight_layout()
    return fig


def main(
    task: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(TASKS)}.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Names that prune() takes, or slicegpt.")
    ] = None,
    budget: Annotated[list[float] | None, typer.Option(help="Kept fractions.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Default: 0.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for records, table and figure.")] = Path(
        "results/retention"
    ),
) -> None:
    """Measure and tabulate."""
    output.mkdir(parents=True, exist_ok=True)
    cells = [
        (name, chosen, number)
        for name in task or TASKS
        for chosen in method or ["stat", "id-unweighted", "stat-paper", "magnitude", "random"]
        for number in seed or [0]
    ]
    records = []
    for name, chosen, number in tqdm(cells, desc="retention"):
        one = TASKS[name]()
        budgets = tuple(budget) if budget else one.budgets
        records.append(record_of(output, name, one, chosen, budgets, number))
    table = markdown(records)
    (output / "retention.md").write_text(table)
    figure(records).savefig(output / "retention.png", dpi=150)
    print(table)


if __name__ == "__main__":
    typer.run(main)
