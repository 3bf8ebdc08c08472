"""What dimensions inside heads are worth beside heads and neurons, at the same cost.

    STAT_PRUNE_DATA=... python benchmarks/head_dims.py --task sst2 --budget 0.4 --budget 0.3

Each task with `head_dims` and without: distance of the output from the dense model's on train
examples that are drawn by another seed, and the task's score on dev.
"""

from __future__ import annotations

from typing import Annotated

import typer

import stat_prune
from harness import options
from harness.inputs import drawn
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from tasks import TASKS

#: Examples that the distance is measured on.
NUM_UNSEEN = 1500


def rows_of(name: str, budgets: list[float], seed: int, samples: int) -> list[str]:
    """A row of the table for each budget, without and with dimensions inside heads."""
    task = TASKS[name]()
    model, tokenizer = task.load()
    texts = task.calibration()
    unseen = drawn(model, tokenizer, texts, NUM_UNSEEN)
    rows = []
    for head_dims in (False, True):
        results = stat_prune.prune_family(
            model,
            texts,
            tokenizer=tokenizer,
            targets=[task.target(kept) for kept in budgets],
            num_calibration_samples=samples,
            seed=seed,
            head_dims=head_dims,
        )
        for kept, result in zip(budgets, results, strict=True):
            found = result.report.head_dims
            far = distance(model, result.model, unseen.batches, output_distance)
            score = task.score(result.model, tokenizer)[task.metric]
            taken = "" if found is None else found.taken
            rows.append(f"| {name} | {kept:g} | {head_dims} | {taken} | {far:.4f} | {score:.4f} |")
    return rows


def main(
    task: Annotated[list[str], typer.Option(help=f"Of {', '.join(TASKS)}.")],
    budget: options.Budgets = None,
    samples: options.Samples = 256,
    seed: int = 0,
) -> None:
    """Print a table."""
    print("| task | kept | head_dims | heads and neurons to | distance | score |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in task:
        for row in rows_of(name, budget or [0.5, 0.4, 0.3], seed, samples):
            print(row, flush=True)


if __name__ == "__main__":
    typer.run(main)
