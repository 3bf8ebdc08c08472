"""What all figures share: colours that everyone can tell apart, and markers for those in grey."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from stat_prune.errors import StatPruneError

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure, FigureBase
except ModuleNotFoundError as error:
    raise StatPruneError(
        "Figures are drawn with matplotlib. Install it with: pip install 'stat-prune[plot]'"
    ) from error

__all__ = [
    "KEPT",
    "REMOVED",
    "SEQUENTIAL",
    "Axes",
    "Figure",
    "FigureBase",
    "ListedColormap",
    "Shades",
    "figure",
    "line_styles",
]

#: Okabe and Ito's palette (2008) without its yellow, which is too light for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
#: Lightness rises evenly along it, so that it is as readable in grey.
SEQUENTIAL = "viridis"
KEPT, REMOVED = "#0072B2", "#E8E8E8"


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that makes room for its labels."""
    return Figure(figsize=(width, height), layout="constrained")


def line_styles(count: int) -> list[dict[str, Any]]:
    """Colour, marker and line for so many lines; no two alike among the first 56."""
    styles = zip(cycle(COLORS), cycle(MARKERS), range(count), strict=False)
    return [
        {
            "color": color,
            "marker": marker,
            "linestyle": LINES[index // len(COLORS) % len(LINES)],
            "markersize": 5,
        }
        for color, marker, index in styles
    ]


class Shades:
    """A colour for each of some ordered lines, from dark to light, and its legend as a bar.

    Parameters
    ----------
    labels : sequence of int
    """

    def __init__(self, labels: Sequence[int]) -> None:
        self._labels = labels
        # The last tenth of the map is too light for lines on white.
        self._colors = colormaps[SEQUENTIAL](np.linspace(0, 0.9, len(labels)))

    def __getitem__(self, label: int) -> Any:
        return self._colors[self._labels.index(label)]

    def bar(self, fig: FigureBase, axes: Sequence[Axes], title: str) -> None:
        """Draw the bar beside `axes`."""
        count = len(self._labels)
        norm = BoundaryNorm([index - 0.5 for index in range(count + 1)], count)
        mappable = ScalarMappable(norm, ListedColormap(list(self._colors)))
        bar = fig.colorbar(mappable, ax=list(axes), label=title, pad=0.02)
        shown = range(0, count, max(1, count // 12))
        bar.set_ticks(list(shown), labels=[str(self._labels[index]) for index in shown])
        bar.ax.minorticks_off()
