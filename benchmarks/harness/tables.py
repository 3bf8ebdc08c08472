"""Records as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness.records import Record, alike, plain


def markdown(records: Sequence[Record]) -> str:
    """A table for each score of each task: mean over seeds, with the standard error if several.

    What was measured under other conditions has tables of its own.
    """
    parts = []
    for task, rows in alike(records):
        for metric in rows[0].get("metrics", [rows[0]["metric"]]):
            parts += [*_table(task, metric, rows), ""]
        parts += _notes(rows)
    return "\n".join(parts)


def _table(task: str, metric: str, rows: Sequence[Record]) -> list[str]:
    budgets = sorted({float(kept) for row in rows for kept in row["scores"]}, reverse=True)
    names = [f"{kept:g}" for kept in budgets]
    seeds = sorted({row["seed"] for row in rows})
    dense = score(rows[0], metric, "dense")
    found = {
        method: [
            [score(row, metric, name) for row in rows if row["method"] == method] for name in names
        ]
        for method in dict.fromkeys(row["method"] for row in rows if not row.get("refused"))
    }
    values = [dense, *(value for cells in found.values() for cell in cells for value in cell)]
    # Shares and correlations need more digits than per cent and perplexities.
    digits = 4 if all(abs(value) <= 1 for value in values if value is not None) else 2
    reference = [] if dense is None else [f"dense {cell([dense], digits)}"]
    return [
        ", ".join([f"**{task}**", metric, *reference, f"seeds {', '.join(map(str, seeds))}"]),
        "",
        "| method | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
        *(
            f"| {method} | " + " | ".join(cell(values, digits) for values in cells) + " |"
            for method, cells in found.items()
        ),
    ]


def _notes(rows: Sequence[Record]) -> list[str]:
    """The conditions, and what was refused."""
    conditions = rows[0].get("conditions", {})
    notes = ["; ".join(f"{name}: {plain(value)}" for name, value in conditions.items())]
    notes += [
        f"{method} does not apply: {reason}"
        for method, reason in {
            row["method"]: row["refused"] for row in rows if row.get("refused")
        }.items()
    ]
    return [line for note in notes if note for line in (note, "")]


def score(row: Record, metric: str, kept: str) -> float | None:
    """One score of a record; None where it has none."""
    if metric == row["metric"]:
        return row["dense"] if kept == "dense" else row["scores"].get(kept)
    return row.get("details", {}).get(kept, {}).get(metric)


def cell(found: Sequence[float | None], digits: int) -> str:
    """Mean and standard error; empty where nothing was measured or nothing is finite."""
    values = [value for value in found if value is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"
