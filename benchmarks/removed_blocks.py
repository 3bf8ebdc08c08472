"""Is a budget better spent where blocks may leave altogether?

    STAT_PRUNE_DATA=... python benchmarks/removed_blocks.py --task sst2 --task stsb --task stories
    STAT_PRUNE_DATA=... python benchmarks/removed_blocks.py --task sst2 --speedup 3 --speedup 6

At every budget and seed a model is pruned with and without ``remove_blocks``. What counts is the
distance of its output from the dense model's on training examples that calibration has not seen, so
that no score on a dev split is looked at.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

import stat_prune
from harness.task import Task
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.settings.targets import Speedup, Target
from tasks import TASKS

Record = dict[str, Any]

#: Share of the training examples that are held out, and the most of them that are measured on.
HELD_OUT, MAX_HELD_OUT = 0.2, 400


def measure(name: str, task: Task, targets: Mapping[str, Target], seed: int) -> list[Record]:
    """Distances on held-out training examples with and without removal, at each named target."""
    model, tokenizer = task.load()
    examples = list(task.calibration())
    random.Random(seed).shuffle(examples)
    count = round(HELD_OUT * len(examples))
    held_out = calibration_set_for(
        model,
        examples[:count][:MAX_HELD_OUT],
        tokenizer,
        num_samples=MAX_HELD_OUT,
        max_seq_length=None,
        batch_size=32,
        seed=0,
    )
    results = {
        remove: stat_prune.prune_family(
            model,
            examples[count:],
            targets=list(targets.values()),
            tokenizer=tokenizer,
            num_calibration_samples=task.num_calibration_samples,
            seed=seed,
            remove_blocks=remove,
            progress=False,
        )
        for remove in (False, True)
    }
    return [
        {
            "task": name,
            "target": target,
            "seed": seed,
            "without": distance(model, whole.model, held_out.batches, output_distance),
            "with": distance(model, removed.model, held_out.batches, output_distance),
            "predicted_without": whole.report.predicted_distance,
            "predicted_with": removed.report.predicted_distance,
            "speed_up_without": whole.report.speed and whole.report.speed.speed_up,
            "speed_up_with": removed.report.speed and removed.report.speed.speed_up,
            "removed": [row.name for row in removed.report.blocks if row.kept == 0],
        }
        for target, whole, removed in zip(targets, results[False], results[True], strict=True)
    ]


def markdown(records: list[Record]) -> str:
    """The records as a table."""
    lines = [
        "| task | target | seed | blocks removed | distance without removal | with | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['task']} | {row['target']} | {row['seed']} | {len(row['removed'])} | "
        f"{row['without']:.4g} | {row['with']:.4g} | {row['with'] / row['without']:.3f} |"
        for row in records
    ]
    return "\n".join(lines) + "\n"


def main(
    task: Annotated[list[str], typer.Option(help=f"Of {', '.join(TASKS)}.")],
    budget: Annotated[list[float] | None, typer.Option(help="Kept fractions.")] = None,
    speedup: Annotated[
        list[float] | None, typer.Option(help="On one sequence of 32 tokens; repeatable.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repeatable. Default: 0.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the records and the table.")] = Path(
        "results/removed_blocks"
    ),
) -> None:
    """Set distances with removal beside those without."""
    cells = [(name, one) for name in task for one in seed or [0]]
    records: list[Record] = []
    output.mkdir(parents=True, exist_ok=True)
    kept = budget or ([] if speedup else [0.5, 0.4, 0.3, 0.2])
    for name, one in tqdm(cells, unit="run"):
        task_of = TASKS[name]()
        targets = {f"{value:g} kept": task_of.target(value) for value in kept}
        targets |= {f"{v:g} times as fast": Speedup(v, seq_length=32) for v in speedup or ()}
        records += measure(name, task_of, targets, one)
        (output / "removed_blocks.json").write_text(json.dumps(records, indent=2) + "\n")
    (output / "removed_blocks.md").write_text(markdown(records))
    print(markdown(records))


if __name__ == "__main__":
    typer.run(main)
