"""What was kept, and what keeping more or less would have cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from stat_prune.errors import DataError
from stat_prune.model.blocks import KINDS
from stat_prune.reporting.block_row import BlockRow
from stat_prune.reporting.plotting.search_plots import draw_search, height_of
from stat_prune.reporting.plotting.style import (
    KEPT,
    REMOVED,
    Axes,
    Figure,
    FigureBase,
    ListedColormap,
    Shades,
    figure,
)
from stat_prune.reporting.report import PruningReport

#: Cells of the grid beyond which removed heads are not crossed out one by one.
MAX_CROSSES = 600


def what_was_kept(report: PruningReport, plan: Mapping[str, Collection[int]]) -> Figure:
    """Grid of the heads of each layer, kept or removed, beside the neurons kept in each layer.

    Parameters
    ----------
    report : PruningReport
    plan : mapping of str to collection of int
        Units kept by block name, as in `PruningResult.plan`.
    """
    rows = _rows(report, "heads") + _rows(report, "neurons")
    fig = figure(9, _height(rows))
    draw_kept(fig.subplots(1, 2, width_ratios=(3, 2)), report, plan)
    return fig


def dimensions_kept(report: PruningReport) -> Figure:
    """Dimensions of queries and keys, and of values, that are kept in each head of a layer.

    Parameters
    ----------
    report : PruningReport
        Of a run in which dimensions left heads.

    Raises
    ------
    DataError
        If none did.
    """
    if not has_narrower_heads(report):
        raise DataError(
            "No dimensions have left the heads in this report: they can with head_dims=True, and "
            "with targets such as MACs({'value': 0.5})."
        )
    fig = figure(9, _height(_rows(report, "heads")))
    draw_dimensions(fig.subplots(1, 2), report)
    return fig


def error_curves(report: PruningReport) -> Figure:
    """Relative error of each block's output against how much of it is kept, the choice marked.

    Parameters
    ----------
    report : PruningReport
        Of a method that prices every size; see `BlockRow.error_curve`.

    Raises
    ------
    DataError
        If it has no curves.
    """
    if not has_curves(report):
        raise DataError(
            f"The report of method {report.settings.get('method')!r} has no error curves: only "
            "methods that price every size of a block have them, such as method='stat'."
        )
    fig = figure(9, 3.8)
    draw_curves(fig, report)
    return fig


def overview(report: PruningReport, plan: Mapping[str, Collection[int]]) -> Figure:
    """What there is of `what_was_kept`, `dimensions_kept`, `error_curves` and `search_stages`."""
    heights = [_height(_rows(report, "heads") + _rows(report, "neurons"))]
    heights += [_height(_rows(report, "heads"))] if has_narrower_heads(report) else []
    heights += [3.8] if has_curves(report) else []
    heights += [height_of(report.search)] if report.search else []
    fig = figure(9, sum(heights))
    parts = fig.subfigures(len(heights), 1, squeeze=False, height_ratios=heights, hspace=0.02)
    kept, *others = parts[:, 0]
    draw_kept(kept.subplots(1, 2, width_ratios=(3, 2)), report, plan)
    if has_narrower_heads(report):
        draw_dimensions(others.pop(0).subplots(1, 2), report)
    if has_curves(report):
        draw_curves(others.pop(0), report)
    if report.search:
        draw_search(others.pop(0), report.search)
    return fig


def has_curves(report: PruningReport) -> bool:
    """Whether any block's sizes were priced."""
    return any(row.error_curve for row in report.blocks)


def has_narrower_heads(report: PruningReport) -> bool:
    """Whether heads that stay have lost dimensions."""
    return any(row.lost_dims for row in report.blocks)


def draw_kept(
    axes: Sequence[Axes], report: PruningReport, plan: Mapping[str, Collection[int]]
) -> None:
    """The two panels of `what_was_kept`."""
    heads, neurons = _rows(report, "heads"), _rows(report, "neurons")
    grid = np.full((len(heads), max((row.total for row in heads), default=1)), np.nan)
    for line, row in zip(grid, heads, strict=True):
        line[: row.total] = 0
        line[list(plan.get(row.name, range(row.total)))] = 1
    panel = axes[0]
    panel.pcolormesh(
        np.ma.masked_invalid(grid),
        cmap=ListedColormap([REMOVED, KEPT]),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=1,
    )
    if grid.size <= MAX_CROSSES:
        y, x = np.nonzero(grid == 0)
        panel.plot(x + 0.5, y + 0.5, "x", color="0.45", markersize=5, linestyle="none")
    kept, total = int(np.nansum(grid)), int(np.isfinite(grid).sum())
    panel.set(
        xlabel="head",
        title=f"heads: {kept} of {total} kept" + (" (× removed)" if kept < total else ""),
    )
    _number(panel, [row.layer for row in heads])
    step = max(1, grid.shape[1] // 16)
    columns = np.arange(0, grid.shape[1], step)
    panel.set_xticks(columns + 0.5, columns.astype(str))
    kept, total = sum(row.kept for row in neurons), sum(row.total for row in neurons)
    _draw_bars(axes[1], neurons, [row.kept for row in neurons], [row.total for row in neurons])
    axes[1].set(xlabel="neurons (dark: kept)", title=f"neurons: {kept:,} of {total:,} kept")


def draw_dimensions(axes: Sequence[Axes], report: PruningReport) -> None:
    """The two panels of `dimensions_kept`; titles count those of all heads that stay."""
    rows = _rows(report, "heads")
    of_kind = {
        "query/key": [row.query_key_dims or [0, 0] for row in rows],
        "value": [row.value_dims or [0, 0] for row in rows],
    }
    for panel, (kind, dims) in zip(axes, of_kind.items(), strict=True):
        # Where no head stays, none of them has a dimension.
        left = [kept if row.kept else 0 for row, (kept, _) in zip(rows, dims, strict=True)]
        _draw_bars(panel, rows, left, [total for _, total in dims])
        kept, total = (
            sum(row.kept * one[place] for row, one in zip(rows, dims, strict=True))
            for place in (0, 1)
        )
        panel.set(
            xlabel=f"{kind} dimensions in each head (dark: kept)",
            title=f"{kind} dimensions: {kept:,} of {total:,} kept",
        )


def draw_curves(fig: FigureBase, report: PruningReport) -> None:
    """The panels of `error_curves`, one a kind, with one colour bar for the layers."""
    curves = {
        kind: rows
        for kind in KINDS
        if (rows := [row for row in _rows(report, kind) if row.error_curve])
    }
    axes = fig.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    shades = Shades(sorted({row.layer for rows in curves.values() for row in rows}))
    for panel, (kind, rows) in zip(axes, curves.items(), strict=True):
        for row in rows:
            sizes, errors = np.array(row.error_curve).T
            panel.plot(sizes / row.total, errors, color=shades[row.layer], linewidth=1.3)
            panel.plot(
                row.kept / row.total,
                np.interp(row.kept, sizes, errors),
                "o",
                color=shades[row.layer],
                markeredgecolor="black",
                markersize=6,
            )
        panel.set(xlabel=f"{kind} kept, fraction of the layer's", title=f"{kind} (● chosen)")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("relative error of the block's output")
    shades.bar(fig, axes, "layer")


def _draw_bars(
    panel: Axes, rows: Sequence[BlockRow], kept: Sequence[int], totals: Sequence[int]
) -> None:
    """A bar a block, of which the dark part is kept, and how much that is."""
    lines = np.arange(len(rows)) + 0.5
    panel.barh(lines, totals, height=0.8, color=REMOVED)
    panel.barh(lines, kept, height=0.8, color=KEPT)
    most = max(totals, default=1)
    if len(rows) <= MAX_CROSSES // 12:
        for line, left in zip(lines, kept, strict=True):
            panel.text(most * 1.02, line, str(left), va="center", fontsize=8)
    panel.set(
        xlim=(0, most * 1.16),
        ylim=(0, max(len(rows), 1)),
        xticks=np.unique(np.linspace(0, most, 5).round()),
    )
    _number(panel, [row.layer for row in rows])


def _number(panel: Axes, layers: Sequence[int]) -> None:
    """Layers from the top down."""
    step = max(1, len(layers) // 16)
    panel.set_yticks(np.arange(0, len(layers), step) + 0.5, [str(n) for n in layers[::step]])
    panel.set_ylabel("layer")
    panel.invert_yaxis()
    panel.tick_params(length=0)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _rows(report: PruningReport, kind: str) -> list[BlockRow]:
    return [row for row in report.blocks if row.kind == kind]


def _height(rows: Sequence[BlockRow]) -> float:
    """Inches for the panels of so many layers."""
    return min(max(2.6, 1.2 + 0.3 * len({row.layer for row in rows})), 8.0)
