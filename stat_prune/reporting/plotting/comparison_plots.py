"""Methods beside each other: scores against cost, predictions against measurements."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from stat_prune.reporting.plotting.style import Axes, Figure, figure, line_styles

#: Panels side by side.
COLUMNS = 4


def score_curves(
    records: Sequence[Mapping[str, Any]], *, xlabel: str = "kept fraction of MACs"
) -> Figure:
    """Score against what is kept: a panel a task, a line a method, the mean over seeds.

    Parameters
    ----------
    records : sequence of mapping
        With ``task``, ``method``, ``metric``, ``dense`` (the dense model's score) and ``scores``
        (by kept fraction, as text; None where it is not finite), one a seed; the records of the
        benchmarks are such. Where there are several seeds, bars show the standard error of their
        mean. A task without a score of the dense model compares nothing and has no panel.
    xlabel : str
    """
    records = [record for record in records if record["dense"] is not None]
    tasks = list(dict.fromkeys(record["task"] for record in records))
    methods = list(dict.fromkeys(record["method"] for record in records))
    styles = dict(zip(methods, line_styles(len(methods)), strict=True))
    columns, rows = min(len(tasks), COLUMNS) or 1, -(-len(tasks) // COLUMNS) or 1
    fig = figure(4.0 * columns + 2.0, 4.0 * rows)
    panels = fig.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    lines: dict[str, Any] = {}
    for panel, task in zip(panels, tasks, strict=False):
        own = [record for record in records if record["task"] == task]
        dense = panel.axhline(own[0]["dense"], color="0.5", linewidth=1, linestyle=(0, (1, 1)))
        lines["dense"] = dense
        for method in dict.fromkeys(record["method"] for record in own):
            scores = [record["scores"] for record in own if record["method"] == method]
            if any(value is not None for one in scores for value in one.values()):
                lines[method] = _draw_line(panel, scores, styles[method])
        if own[0]["metric"].startswith("perplexity"):
            panel.set_yscale("log")
        panel.set(xlabel=xlabel, ylabel=own[0]["metric"], title=task)
        panel.grid(alpha=0.3)
    ordered = [name for name in ("dense", *methods) if name in lines]
    fig.legend([lines[name] for name in ordered], ordered, loc="outside right upper", fontsize=8)
    return fig


def predicted_against_measured(series: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Predicted and measured distances of outputs, on logarithmic axes.

    Parameters
    ----------
    series : mapping of str to sequence of (predicted, measured)
        By label; points are joined in their order. Both are positive.
    """
    fig = figure(5, 4.6)
    axes = fig.subplots()
    for (label, points), style in zip(series.items(), line_styles(len(series)), strict=True):
        predicted, measured = zip(*points, strict=True)
        axes.plot(predicted, measured, label=label, **style | {"linestyle": ":"})
    values = [value for points in series.values() for point in points for value in point]
    limits = [min(values) / 1.5, max(values) * 1.5]
    axes.plot(limits, limits, color="0.5", linewidth=1, label="equal")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=limits,
        ylim=limits,
        xlabel="predicted distance of the output",
        ylabel="measured distance of the output",
        aspect="equal",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return fig


def _draw_line(
    panel: Axes, scores: Sequence[Mapping[str, float | None]], style: Mapping[str, Any]
) -> Any:
    found: dict[str, list[float]] = {}
    for one in scores:
        for kept, value in one.items():
            found.setdefault(kept, []).extend([] if value is None else [value])
    points = {float(kept): found[kept] for kept in sorted(found, key=float) if found[kept]}
    errors = [
        statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        for values in points.values()
    ]
    return panel.errorbar(
        list(points),
        [statistics.mean(values) for values in points.values()],
        yerr=errors if any(errors) else None,
        capsize=2,
        linewidth=1.3,
        **style,
    )
