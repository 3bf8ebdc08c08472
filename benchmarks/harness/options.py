"""Options that the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.ways import METHOD_NAMES
from stat_prune.cli.settings_options import DEVICE, FINISH, option

DEFAULT_METHODS = ("stat", "id-unweighted", "stat-paper", "magnitude", "random")


def known_methods(default: Sequence[str]) -> Callable[[list[str] | None], list[str]]:
    """A callback that refuses other names, and has a default."""

    def checked(values: list[str] | None) -> list[str]:
        unknown = set(values or ()) - set(METHOD_NAMES)
        if unknown:
            raise typer.BadParameter(f"{sorted(unknown)} are none of {', '.join(METHOD_NAMES)}")
        return list(values or default)

    return checked


Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        callback=known_methods(DEFAULT_METHODS),
        help=f"Repeatable, of {', '.join(METHOD_NAMES)}.",
    ),
]
Budgets = Annotated[list[float] | None, typer.Option("--budget", help="Kept fraction; repeatable.")]
Effort = Annotated[str | None, option("effort")]
Allocation = Annotated[str | None, option("budget")]
Finish = Annotated[str | None, FINISH]
HeadDims = Annotated[bool | None, option("head_dims")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Repeatable. Default: 0.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Score only so many examples.")]
Samples = Annotated[int, typer.Option(min=1, help="Calibration examples.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences at once, in scoring.")]
Device = Annotated[str | None, DEVICE]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16, of the model.")]
Output = Annotated[
    Path, typer.Option(help="Folder for records, table and figure; a later run goes on there.")
]


def settings_of(
    effort: str | None,
    allocation: str | None,
    finish: str | None = None,
    head_dims: bool | None = None,
) -> dict[str, Any]:
    """The arguments of ``prune`` among the options, where they are given."""
    given = {"effort": effort, "budget": allocation, "finish": finish, "head_dims": head_dims}
    return {name: value for name, value in given.items() if value is not None}
