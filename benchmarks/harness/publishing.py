"""Progress while cells are measured, then the table and the figure; also of an interrupted run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from tqdm.auto import tqdm

from harness.cost_tables import cost_tables, spent_figure
from harness.records import Record
from harness.tables import markdown
from stat_prune.errors import StatPruneError
from stat_prune.reporting.plotting import score_curves


@contextmanager
def publishing(benchmark: str, output: Path, count: int) -> Iterator[Callable[[Record], None]]:
    """Yield what takes each finished record; at the end, or when interrupted, publish them.

    Parameters
    ----------
    benchmark : str
        Names the table and the figure.
    output : Path
        Is made.
    count : int
        Cells in all, for the progress bar.
    """
    output.mkdir(parents=True, exist_ok=True)
    found: list[Record] = []
    try:
        with tqdm(total=count, desc=benchmark, unit="cell") as bar:

            def add(record: Record) -> None:
                found.append(record)
                bar.update()

            yield add
    except KeyboardInterrupt:
        typer.echo("stopped: what is finished is kept, the same command goes on there", err=True)
        raise typer.Exit(130) from None
    except StatPruneError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    finally:
        if found:
            _publish(benchmark, found, output)


def _publish(benchmark: str, found: Sequence[Record], output: Path) -> None:
    table = markdown(found)
    if any(record.get("measures") for record in found):
        table += "\n" + cost_tables(found)
        if (figure := spent_figure(found)) is not None:
            figure.savefig(output / f"{benchmark}-spent.png", dpi=150)
    (output / f"{benchmark}.md").write_text(table, encoding="utf-8")
    score_curves(found, xlabel="kept fraction").savefig(output / f"{benchmark}.png", dpi=150)
    typer.echo(table)
