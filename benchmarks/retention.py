"""What is left of a model at a given cost: methods x budgets x tasks x seeds.

    STAT_PRUNE_DATA=... python benchmarks/retention.py --task encoder --method stat --method random

The models and data of `tasks`, at hand without a hub; `glue`, `squad` and `wikitext2` take any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import options
from harness.cells import Grid, run
from tasks import TASKS


def main(
    task: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(TASKS)}.")] = None,
    method: options.Methods = None,
    budget: options.Budgets = None,
    seed: options.Seeds = None,
    effort: options.Effort = None,
    allocation: options.Allocation = None,
    finish: options.Finish = None,
    head_dims: options.HeadDims = None,
    output: options.Output = Path("results/retention"),
) -> None:
    """Measure, tabulate and draw."""
    tasks = {name: TASKS[name] for name in task or TASKS}
    run(
        "retention",
        tasks,
        Grid(method, seed or [0], budget),
        output,
        settings=options.settings_of(effort, allocation, finish, head_dims),
    )


if __name__ == "__main__":
    typer.run(main)
