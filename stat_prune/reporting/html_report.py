"""A report as one self-contained web page: tables, and figures embedded in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from stat_prune.reporting.block_row import error_text
from stat_prune.reporting.plotting import (
    dimensions_kept,
    error_curves,
    search_stages,
    what_was_kept,
)
from stat_prune.reporting.plotting.pruned import has_curves, has_narrower_heads
from stat_prune.reporting.report import PruningReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT_CAPTION = "Heads and neurons kept in each layer."
DIMS_CAPTION = "Dimensions of queries and keys, and of values, kept in each head of a layer."
CURVES_CAPTION = "What every size of a block would have cost, and the size chosen."

DIMS_HEADINGS = ("block", "query/key", "value", "error of scores", "error of output by values")

SEARCH_CAPTION = "Whole pruned models, each panel on sequences of its own; what was taken is dark."


def html_page(report: PruningReport, plan: Mapping[str, Collection[int]]) -> str:
    """The page; it refers to nothing outside itself.

    Parameters
    ----------
    report : PruningReport
    plan : mapping of str to collection of int
        As in `PruningResult.plan`.

    Raises
    ------
    StatPruneError
        Where matplotlib is not installed.
    """
    environment = Environment(
        loader=PackageLoader("stat_prune.reporting"),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    figures = [(KEPT_CAPTION, _embedded(what_was_kept(report, plan)))]
    if has_narrower_heads(report):
        figures.append((DIMS_CAPTION, _embedded(dimensions_kept(report))))
    if has_curves(report):
        figures.append((CURVES_CAPTION, _embedded(error_curves(report))))
    search = None if report.search is None else _embedded(search_stages(report.search))
    return environment.get_template("report.html").render(
        report=report,
        sizes=_sizes(report),
        figures=figures,
        search=search,
        search_caption=SEARCH_CAPTION,
        headings=report.HEADINGS,
        rows=report.cells(),
        dims_headings=DIMS_HEADINGS,
        dims=_dims(report),
        sections=[
            *(
                (title, {table.name: str(table)})
                for title, table in (
                    ("Embeddings", report.embeddings),
                    ("Head of the language model", report.lm_head),
                )
                if table is not None
            ),
            ("Time", {name: f"{value:.1f} s" for name, value in report.seconds.items()}),
            ("Settings", report.settings_used()),
            ("Versions", report.versions),
        ],
    )


def _embedded(figure: Figure) -> str:
    """A figure as the address of an image that holds it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _dims(report: PruningReport) -> list[tuple[str, ...]]:
    """A row for each block of heads, in the order of `DIMS_HEADINGS`; none where all stayed."""
    if not has_narrower_heads(report):
        return []
    errors = {} if report.head_dims is None else report.head_dims.errors
    return [
        (row.name, *row.dims_texts(), *map(error_text, errors.get(row.name, (None, None))))
        for row in report.blocks
        if row.kind == "heads"
    ]


def _sizes(report: PruningReport) -> list[tuple[str, str, str, str]]:
    before, after = report.before, report.after
    rows = (
        ("MACs of blocks", before.block_macs, after.block_macs, "{:.4g}"),
        ("parameters of blocks", before.block_parameters, after.block_parameters, "{:,}"),
        ("all parameters", before.parameters, after.parameters, "{:,}"),
        ("MiB", before.bytes / 2**20, after.bytes / 2**20, "{:.1f}"),
    )
    return [
        (name, form.format(old), form.format(new), f"{new / old:.1%}")
        for name, old, new, form in rows
    ]
