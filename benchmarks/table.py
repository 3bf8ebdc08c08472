"""What is left of real models, what that costs and gains, and what was spent on it: one command.

    STAT_PRUNE_DATA=... python benchmarks/table.py --squad-model minilm-squad
    python benchmarks/table.py --task sst2=textattack/bert-base-uncased-SST-2 --budget 0.6

The models and tasks of `tasks`, and any model on the Hub as KIND=MODEL. Every model is pruned in a
process of its own and saved; what is scored, compared with the dense model and timed beside it is
what was loaded from there. Interrupted, the same command goes on where it was. On a busy machine
ask for --no-speed: the pruned models are kept in the folder, and the same command without it times
them on a quiet one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import options, ways
from harness.cells import Grid, run
from harness.subject import Measuring
from stat_prune.errors import SettingsError
from tasks import KINDS, TASKS, named

#: Beside each other; the last of them are what may be spent more, or less.
WAYS = (
    "magnitude",
    "random",
    "wanda-sp",
    "flap",
    "grail",
    "corp",
    "obs",
    "fisher",
    "kprune",
    "kcm",
    "stat-paper",
    "id-even",
    "id-unweighted",
    "id-probed",
    "stat",
    *ways.WAYS,
)


def main(
    task: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Of {', '.join(TASKS)}; or KIND=MODEL with a task of GLUE or one of "
            f"{', '.join(KINDS)}. Repeatable. Default: all of the former."
        ),
    ] = None,
    squad_model: Annotated[
        str | None, typer.Option(help="As --task squad=MODEL, beside the others.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            callback=options.known_methods(WAYS),
            help=f"Repeatable. Default: {', '.join(WAYS)}.",
        ),
    ] = None,
    budget: options.Budgets = None,
    seed: Annotated[list[int] | None, typer.Option(help="Repeatable. Default: 0, 1 and 2.")] = None,
    shape: Annotated[str, typer.Option(help="Sequences x tokens that are timed.")] = "8x128",
    rounds: Annotated[int, typer.Option(min=1, help="Of turns, in timing.")] = 15,
    examples: Annotated[int, typer.Option(min=1, help="On which outputs are compared.")] = 200,
    speed: Annotated[bool, typer.Option(help="Time the models now.")] = True,
    output: options.Output = Path("results/table"),
) -> None:
    """Measure, tabulate and draw."""
    lines = list(task or TASKS)
    if squad_model is not None:
        lines.append(f"squad={squad_model}")
    try:
        tasks = dict(named(line) for line in lines)
        batch_size, seq_length = map(int, shape.split("x"))
    except (SettingsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    run(
        "table",
        tasks,
        Grid(method or WAYS, seed or [0, 1, 2], budget),
        output,
        measuring=Measuring(batch_size, seq_length, rounds, examples, speed),
    )


if __name__ == "__main__":
    typer.run(main)
