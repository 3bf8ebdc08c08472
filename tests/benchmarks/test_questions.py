"""The benchmarks that ask one question each run from their commands to their tables."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import tasks
from glue import glue_task


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("additivity", ["--budget", 0.8, "--budget", 0.5]),
        ("projections", ["--budget", 0.5]),
        ("removed_blocks", ["--budget", 0.5]),
        ("head_dims", ["--budget", 0.6, "--samples", 48]),
    ],
)
def test_it_runs_to_its_table(
    script: str, options: list[object], at_hand: Path, tmp_path: Path, monkeypatch
) -> None:
    task = partial(glue_task, "sst2", model="tiny-sst2")
    monkeypatch.setitem(tasks.TASKS, "sst2", task)
    app = typer.Typer()
    app.command()(import_module(script).main)
    monkeypatch.chdir(tmp_path)  # where results go
    arguments = ["--task", "sst2", *options]
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "| sst2 " in done.output
