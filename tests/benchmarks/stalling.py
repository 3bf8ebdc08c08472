"""A benchmark of a tiny model that stalls at a score, for tests that stop it there.

    python stalling.py OUTPUT LOG STALL_AT

Every score that is begun adds a line to LOG; the one of number STALL_AT never ends.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import typer
from tiny_models import tiny_bert

from harness.cells import Grid, run
from harness.task import Task
from stat_prune import MACs

LENGTH = 16


def task(log: Path, stall_at: int) -> Task:
    def score(model, _tokenizer):
        size = sum(parameter.numel() for parameter in model.parameters())
        with log.open("a") as file:
            file.write(f"{size}\n")
        if len(log.read_text().splitlines()) == stall_at:
            time.sleep(600)
        with torch.no_grad():
            output = model(torch.arange(LENGTH)[None]).last_hidden_state
        return {"mean": float(output.abs().mean()), "size": size}

    rows = torch.randint(64, (24, LENGTH), generator=torch.Generator().manual_seed(0))
    return Task(
        metrics=("mean", "size"),
        num_calibration_samples=24,
        budgets=(0.8, 0.5),
        target=MACs,
        load=lambda: (tiny_bert(), None),
        calibration=lambda: rows,
        score=score,
        conditions={"length": LENGTH},
    )


def main(output: Path, log: Path, stall_at: int) -> None:
    run(
        "stalling",
        {name: lambda: task(log, stall_at) for name in ("first", "second")},
        Grid(methods=("stat", "random", "slicegpt"), seeds=(0, 1)),
        output,
    )


if __name__ == "__main__":
    typer.run(main)
