"""What pruned models cost and gain, and what was spent on them, as Markdown and as a figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from textwrap import fill

from harness.records import Record, alike
from harness.tables import cell, score
from stat_prune.reporting.plotting.style import Figure, figure, line_styles

MEBIBYTE = 2**20

#: How measures of a stage of pruning begin; and that of a plain forward over the calibration set.
STAGE = "seconds of "
FORWARD = f"{STAGE}a forward"

#: Characters of a panel's title in a line.
TITLE_WIDTH = 60

#: Headings, what they are multiplied with, digits; of `measures` in a record.
COSTS = {
    "divergence": ("divergence", 1.0, 4),
    "parameters": ("parameters, millions", 1e-6, 3),
    "bytes": ("MiB on disk", 1 / MEBIBYTE, 1),
    "speed_up": ("speed-up", 1.0, 2),
    "computing_seconds": ("CPU s of pruning", 1.0, 0),
    "peak_bytes": ("peak MiB", 1 / MEBIBYTE, 0),
    "bytes_before": ("before", 1 / MEBIBYTE, 0),
}
SPENT = {
    "forwards": ("forwards", 1.0, 1),
    "computing_seconds": ("CPU minutes", 1 / 60, 2),
}


def cost_tables(records: Sequence[Record]) -> str:
    """For each task a row a model, and one of what was spent on it; means over seeds.

    What was measured under other conditions has tables of its own.
    """
    parts: list[str] = []
    for task, rows in alike([record for record in records if record.get("measures")]):
        parts += [*_costs(task, rows), ""]
        if spent := _timed(rows):
            parts += [*_spent(task, spent), ""]
        if any(name.startswith(STAGE) for row in rows for name in _names(row)):
            parts += [*_stages(task, rows), ""]
    return "\n".join(parts)


def _costs(task: str, rows: Sequence[Record]) -> list[str]:
    metrics, digits = rows[0].get("metrics", [rows[0]["metric"]]), _digits(rows)
    there = {name for row in rows for name in _names(row)}
    costs = {name: column for name, column in COSTS.items() if name in there}
    headings = ["kept", "method", *metrics, "kept MACs", *(name for name, _, _ in costs.values())]
    dense = rows[0]["measures"].get("dense", {})

    def scores(own: Sequence[Record], kept: str) -> list[str]:
        return [cell([score(row, metric, kept) for row in own], digits) for metric in metrics]

    lines = [
        ["1", "dense", *scores(rows[:1], "dense"), "1", *_values([dense], costs)],
    ]
    for kept, method, own in _cells(rows):
        lines.append(
            [
                kept,
                method,
                *scores(own, kept),
                f"{statistics.mean(row['sizes'][kept]['kept_macs'] for row in own):.3f}",
                *_values([row["measures"][kept] for row in own], costs),
            ]
        )
    return [f"**{task}**, what is left and what it takes", "", *_table(headings, lines)]


def _spent(task: str, rows: Sequence[Record]) -> list[str]:
    """From the least to the most that was spent, at each kept fraction."""
    metric, digits = rows[0]["metric"], _digits(rows)
    headings = ["kept", "method", *(name for name, _, _ in SPENT.values()), metric]

    def forwards(found: tuple[str, str, list[Record]]) -> tuple[float, float]:
        kept, _, own = found
        return -float(kept), statistics.mean(row["measures"][kept]["forwards"] for row in own)

    lines = [
        [
            kept,
            method,
            *_values([row["measures"][kept] for row in own], SPENT),
            cell([score(row, metric, kept) for row in own], digits),
        ]
        for kept, method, own in sorted(_cells(rows), key=forwards)
    ]
    title = f"**{task}**, by what is spent; forwards over the calibration set"
    return [title, "", *_table(headings, lines)]


def _stages(task: str, rows: Sequence[Record]) -> list[str]:
    """What each stage of pruning takes, also by what a plain forward does; means over seeds."""
    headings = ["kept", "method", "stage", "seconds", "forwards"]
    lines = []
    for kept, method, own in _cells(rows):
        for stage in dict.fromkeys(name for row in own for name in row["measures"][kept]):
            if stage.startswith(STAGE):
                found = [
                    (row["measures"][kept][stage], _forward(row))
                    for row in own
                    if stage in row["measures"][kept]
                ]
                seconds = [took for took, _ in found]
                forwards = [took / forward for took, forward in found if forward]
                cells = _three_digits(seconds), _three_digits(forwards)
                lines.append([kept, method, stage.removeprefix(STAGE), *cells])
    forward = _three_digits([one for one in map(_forward, rows) if one])
    beside = f"; a forward over the calibration set takes {forward} s" if forward else ""
    return [f"**{task}**, stage by stage{beside}", "", *_table(headings, lines)]


def _forward(row: Record) -> float | None:
    """Seconds of a plain forward over the calibration set, where a record has them."""
    found: float | None = row["measures"].get("dense", {}).get(FORWARD)
    return found


def spent_figure(records: Sequence[Record]) -> Figure | None:
    """Score against what was spent: a panel a task, a marker a kept fraction."""
    groups = alike(_timed(records))
    if not groups:
        return None
    fig = figure(5.0 * len(groups) + 1.0, 4.2)
    panels = fig.subplots(1, len(groups), squeeze=False).ravel()
    for panel, (task, rows) in zip(panels, groups, strict=True):
        by_kept: dict[str, list[tuple[float, float, str]]] = {}
        for kept, method, own in _cells(rows):
            values = [row["scores"][kept] for row in own if row["scores"][kept] is not None]
            spent = statistics.mean(row["measures"][kept]["forwards"] for row in own)
            if values:
                by_kept.setdefault(kept, []).append((spent, statistics.mean(values), method))
        for (kept, points), style in zip(by_kept.items(), line_styles(len(by_kept)), strict=True):
            points.sort()
            panel.plot(
                [spent for spent, _, _ in points],
                [value for _, value, _ in points],
                label=f"{kept} kept",
                **style | {"linestyle": "none"},
            )
            for spent, value, method in points:
                panel.annotate(
                    method, (spent, value), (4, 3), textcoords="offset points", fontsize=6
                )
        if rows[0]["dense"] is not None:
            panel.axhline(rows[0]["dense"], color="0.5", linewidth=1, label="dense")
        if not rows[0].get("higher_is_better", True):
            panel.set_yscale("log")
        panel.set(
            xscale="log",
            xlabel="forwards over the calibration set",
            ylabel=rows[0]["metric"],
            title=fill(task, TITLE_WIDTH),
        )
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return fig


def _timed(records: Sequence[Record]) -> list[Record]:
    """Those that say what was spent."""
    return [
        record
        for record in records
        if any("computing_seconds" in one for one in record.get("measures", {}).values())
    ]


def _cells(rows: Sequence[Record]) -> list[tuple[str, str, list[Record]]]:
    """Kept fraction, method, and the records of its seeds; the largest models first."""
    kept = sorted({one for row in rows for one in row["measures"]} - {"dense"}, key=float)
    found = []
    for one in reversed(kept):
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [r for r in rows if r["method"] == method and one in r["measures"]]
            if own:
                found.append((one, method, own))
    return found


def _values(
    measures: Sequence[dict[str, float]], columns: dict[str, tuple[str, float, int]]
) -> list[str]:
    """Means over seeds, in the units of the columns; empty where nothing was measured."""
    values = []
    for name, (_, unit, digits) in columns.items():
        found = [one[name] * unit for one in measures if one.get(name) is not None]
        values.append(f"{statistics.mean(found):.{digits}f}" if found else "")
    return values


def _names(row: Record) -> list[str]:
    """Of all measures in a record."""
    return [name for one in row["measures"].values() for name in one]


def _three_digits(values: Sequence[float]) -> str:
    """The mean with three digits that say something, not as a power of ten; empty of nothing."""
    mean = statistics.mean(values) if values else 0.0
    if not mean:
        return "0" if values else ""
    return f"{mean:.{max(2 - math.floor(math.log10(abs(mean))), 0)}f}"


def _digits(rows: Sequence[Record]) -> int:
    values = [value for row in rows for value in [row["dense"], *row["scores"].values()]]
    return 4 if all(abs(value) <= 1 for value in values if value is not None) else 2


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *lines)]
