"""What dimensions inside heads are worth beside heads and neurons, at the same cost.

    STAT_PRUNE_DATA=... python benchmarks/head_dims.py --task sst2 --budget 0.4 --budget 0.3

Each task with `head_dims` and without: distance of the output from the dense model's on train
examples that are drawn by another seed, and the task's score on dev.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

import stat_prune
from harness import options
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from tasks import TASKS

#: Examples that the distance is measured on, and by what they are drawn.
NUM_UNSEEN, UNSEEN_SEED = 1500, 99


def rows_of(name: str, budgets: list[float], seed: int, samples: int) -> list[str]:
    """A row of the table for each budget, without and with dimensions inside heads."""
    task = TASKS[name]()
    model, tokenizer = task.load()
    texts = task.calibration()
    drawn = np.random.default_rng(UNSEEN_SEED).permutation(len(texts))[:NUM_UNSEEN]
    unseen = calibration_set_for(
        model,
        [texts[place] for place in drawn],
        tokenizer,
        num_samples=NUM_UNSEEN,
        num_held_out=0,
        max_seq_length=None,
        batch_size=32,
        seed=1,
        mask_fraction=0.0,
    )
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
