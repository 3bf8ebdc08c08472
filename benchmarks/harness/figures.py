"""Records as a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import cycle

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from harness.records import Record

COLUMNS = 4
STYLES = [marker + line for line in ("-", "--", ":") for marker in "os^Dvx*P"]


def figure(records: Sequence[Record]) -> plt.Figure:
    """Score against kept fraction: a panel a task and a line a method, means over seeds.

    A task without a score of the dense model compares nothing and has no panel.
    """
    names = list(dict.fromkeys(row["task"] for row in records if row["dense"] is not None))
    columns, rows = min(len(names), COLUMNS) or 1, -(-len(names) // COLUMNS) or 1
    chart, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        _panel(axis, name, [record for record in records if record["task"] == name])
    if names:
        axes.flat[0].legend(fontsize=7)
    plt.close(chart)
    return chart


def _panel(axis: plt.Axes, name: str, rows: Sequence[Record]) -> None:
    for style, method in zip(cycle(STYLES), dict.fromkeys(row["method"] for row in rows)):
        scores = [row["scores"] for row in rows if row["method"] == method]
        points = {
            kept: [found[kept] for found in scores if found.get(kept) is not None]
            for kept in sorted({kept for found in scores for kept in found}, key=float)
        }
        means = {float(kept): statistics.mean(found) for kept, found in points.items() if found}
        if means:
            axis.plot(means.keys(), means.values(), style, label=method)
    axis.axhline(rows[0]["dense"], color="0.5", linewidth=0.8, label="dense")
    if rows[0]["metric"].startswith("perplexity"):
        axis.set_yscale("log")
    axis.set(xlabel="kept fraction", ylabel=rows[0]["metric"], title=name)
