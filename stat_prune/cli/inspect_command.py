"""``stat-prune inspect``."""

from __future__ import annotations

import json
from os.path import exists, isfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stat_prune.checkpoints.replacing import PLAN_FILE, REPORT_FILE
from stat_prune.cli.common_options import Json, print_json
from stat_prune.errors import LoadError
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.what_was_done import in_one_line


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with a pruned model.")],
    json_output: Json = False,
) -> None:
    """Show what was removed where, what it cost, and how the run can be repeated.

    Of a folder that a trainer or `save_pretrained` wrote from a pruned model: what is left of the
    dense model in each layer, as its config says.

    \b
      stat-prune inspect out
      stat-prune inspect out --json | jq .report.after
    """
    # of os.path, which finds nothing by a name that is too long
    if isfile(folder / "config.json") and not exists(folder / REPORT_FILE):
        _show_sizes(folder, json_output)
        return
    report, plan = _read_record(folder)
    if json_output:
        print_json({"report": report.to_dict(), "plan": plan})
        return
    Console().print(report.table())
    for row in report.blocks:
        if row.kind == "heads" and row.kept < row.total and row.name in plan:
            removed = sorted(set(range(row.total)) - set(plan[row.name]))
            typer.echo(f"{row.name} without {', '.join(map(str, removed))}")
    for name, value in (report.settings_used() | report.versions).items():
        typer.echo(f"{name}: {value}")
    typer.echo(in_one_line(report))


def _show_sizes(folder: Path, json_output: bool) -> None:
    from stat_prune.reporting.recorded_sizes import recorded_sizes

    sizes = recorded_sizes(folder)
    if json_output:
        print_json({"sizes": sizes.to_dict()})
        return
    Console().print(sizes.table())
    typer.echo(sizes.in_one_line())


def _read_record(folder: Path) -> tuple[PruningReport, dict[str, list[int]]]:
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        found = PruningReport.from_dict(report)
        kept = {name: [int(unit) for unit in units] for name, units in plan.items()}
        return found, kept
    except OSError as error:
        raise LoadError(
            f"{folder} holds no record of pruning ({error.strerror}: {error.filename}). "
            "Pass a folder that stat-prune wrote."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"The record of pruning in {folder} is damaged: {error!r}.") from error
