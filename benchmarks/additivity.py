"""Does the sum of what the blocks' errors do alone predict what they do together?

    STAT_PRUNE_DATA=... python benchmarks/additivity.py --task encoder --task sst2

Probes foresee it: the sum over blocks of sensitivity times squared error of the output. This sets
that prediction beside the distance that the whole pruned model shows on calibration sequences held
out, at every budget: before the second pass and after it. The budget is spread by the prediction
itself, or with ``--allocation searched`` as it is by default.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

import stat_prune
from harness import options
from stat_prune.reporting.plotting import predicted_against_measured
from stat_prune.settings.methods import Allocation
from tasks import TASKS

Record = dict[str, Any]


def measure(
    name: str, budgets: list[float], seed: int, allocation: Allocation = "probed"
) -> list[Record]:
    """Predicted and measured distance of the output at each budget."""
    task = TASKS[name]()
    model, tokenizer = task.load()
    results = stat_prune.prune_family(
        model,
        task.calibration(),
        tokenizer=tokenizer,
        targets=[task.target(kept) for kept in budgets],
        num_calibration_samples=task.num_calibration_samples,
        seed=seed,
        budget=allocation,
        passes=2,
        progress=False,
    )
    records = []
    for kept, result in zip(budgets, results, strict=True):
        second = result.report.second_pass
        assert second is not None
        first, again = second["distances"].values()
        records.append(
            {
                "task": name,
                "kept": kept,
                "predicted": result.report.predicted_distance,
                "first_pass": first,
                "second_pass": again,
            }
        )
    return records


def markdown(records: list[Record]) -> str:
    """The records as a table."""
    lines = [
        "| task | kept | predicted | measured, first pass | measured / predicted | "
        "measured, second pass |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['task']} | {row['kept']:g} | {row['predicted']:.3g} | {row['first_pass']:.3g} | "
        f"{row['first_pass'] / row['predicted']:.2f} | {row['second_pass']:.3g} |"
        for row in records
    ]
    return "\n".join(lines) + "\n"


def main(
    task: Annotated[list[str], typer.Option(help=f"Of {', '.join(TASKS)}.")],
    budget: Annotated[list[float] | None, typer.Option(help="Kept fractions.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the table and the figure.")] = Path(
        "results/additivity"
    ),
    seed: int = 0,
    allocation: options.Allocation = "probed",
) -> None:
    """Set predicted beside measured distances."""
    budgets = budget or [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    records = [
        row for name in tqdm(task, unit="task") for row in measure(name, budgets, seed, allocation)
    ]
    output.mkdir(parents=True, exist_ok=True)
    (output / "additivity.json").write_text(json.dumps(records, indent=2) + "\n")
    (output / "additivity.md").write_text(markdown(records))
    series = {
        name: [(row["predicted"], row["first_pass"]) for row in records if row["task"] == name]
        for name in task
    }
    predicted_against_measured(series).savefig(output / "additivity.png", dpi=150)
    print(markdown(records))


if __name__ == "__main__":
    typer.run(main)
