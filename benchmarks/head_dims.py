"""What dimensions inside heads are worth beside heads and neurons, at the same cost.

    STAT_PRUNE_DATA=... python benchmarks/head_dims.py --task sst2 --budget 0.4 --budget 0.3
    STAT_PRUNE_DATA=... OMP_NUM_THREADS=1 python benchmarks/head_dims.py --task sst2 --speedup 2

Each task with `head_dims` and without: distance of the output from the dense model's on train
examples that are drawn by another seed, and the task's score on dev; of speed-ups also what was
measured.
"""

from __future__ import annotations

from typing import Annotated

import typer

import stat_prune
from harness import options
from harness.inputs import drawn
from stat_prune import Speedup
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from tasks import TASKS

#: Examples that the distance is measured on.
NUM_UNSEEN = 1500


def rows_of(name: str, asked: list[float], batch: str | None, seed: int, samples: int) -> list[str]:
    """A row of the table for each budget, without and with dimensions inside heads.

    With a batch, such as ``16x64``, they are speed-ups on it.
    """
    task = TASKS[name]()
    if batch is None:
        targets = [task.target(kept) for kept in asked]
    else:
        size, length = map(int, batch.split("x"))
        targets = [Speedup(factor, batch_size=size, seq_length=length) for factor in asked]
    model, tokenizer = task.load()
    texts = task.calibration()
    unseen = drawn(model, tokenizer, texts, NUM_UNSEEN)
    rows = []
    for head_dims in (False, True):
        results = stat_prune.prune_family(
            model,
            texts,
            tokenizer=tokenizer,
            targets=targets,
            num_calibration_samples=samples,
            seed=seed,
            head_dims=head_dims,
        )
        for kept, result in zip(asked, results, strict=True):
            speed = result.report.speed
            reached = f"{kept:g}" if speed is None else f"{kept:g} x ({speed.speed_up:.3f})"
            found = result.report.head_dims
            far = distance(model, result.model, unseen.batches, output_distance)
            score = task.score(result.model, tokenizer)[task.metric]
            taken = "" if found is None else found.taken
            rows.append(f"| {name} | {reached} | {head_dims} | {taken} | {far:.4f} | {score:.4f} |")
    return rows


def main(
    task: Annotated[list[str], typer.Option(help=f"Of {', '.join(TASKS)}.")],
    budget: options.Budgets = None,
    speedup: Annotated[list[float] | None, typer.Option(help="In place of --budget.")] = None,
    batch: Annotated[str, typer.Option(help="Sequences x tokens that are timed.")] = "16x64",
    samples: options.Samples = 256,
    seed: int = 0,
) -> None:
    """Print a table."""
    print("| task | kept | head_dims | heads and neurons to | distance | score |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in task:
        asked, timed = (speedup, batch) if speedup else (budget or [0.5, 0.4, 0.3], None)
        for row in rows_of(name, asked, timed, seed, samples):
            print(row, flush=True)


if __name__ == "__main__":
    typer.run(main)
