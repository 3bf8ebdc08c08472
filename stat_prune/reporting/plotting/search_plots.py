"""What a search for a budget found, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from stat_prune.reporting.plotting.style import KEPT, REMOVED, Axes, Figure, FigureBase, figure
from stat_prune.reporting.search_report import Search

#: Characters of a bar's name in a line.
NAME_WIDTH = 16


def search_stages(search: Search) -> Figure:
    """Distances of the starts; of each round, before and after; and of what was judged at the end.

    Each panel is measured on other sequences, so that bars compare within one.

    Parameters
    ----------
    search : Search
        As in `PruningReport.search`.
    """
    fig = figure(9, height_of(search))
    draw_search(fig, search)
    return fig


def height_of(search: Search) -> float:
    """Inches that `draw_search` needs."""
    return 1.2 + 0.36 * _num_lines(search)


def _num_lines(search: Search) -> int:
    return max(len(search.starts), len(search.rounds), len(search.held_out), 2)


def draw_search(fig: FigureBase, search: Search) -> None:
    """The panels of `search_stages`: as many as there were stages."""
    count = 1 + bool(search.rounds) + bool(search.held_out)
    first, *others = panels = fig.subplots(1, count, squeeze=False)[0]
    # Where something was judged at the end, that begins with the start that was taken.
    _draw_bars(first, search.starts, next(iter(search.held_out), search.taken))
    first.set_title(f"starts, {search.sequences} sequences", fontsize=10)
    first.set_ylabel("start")
    if search.rounds:
        _draw_rounds(others[0], search)
    if search.held_out:
        _draw_bars(others[-1], search.held_out, search.taken)
        others[-1].set_title(f"held out, {search.held_out_sequences} sequences", fontsize=10)
    for panel in panels:
        panel.set(ylim=(_num_lines(search) - 0.5, -0.5), xlabel="distance of the output")


def _draw_rounds(panel: Axes, search: Search) -> None:
    """A bar a round, of which the dark part is left."""
    lines = range(len(search.rounds))
    panel.barh(lines, [one.before for one in search.rounds], height=0.7, color=REMOVED)
    panel.barh(lines, [one.after for one in search.rounds], height=0.7, color=KEPT)
    most = max(max(one.before, one.after) for one in search.rounds)
    for line, one in zip(lines, search.rounds, strict=True):
        text = f" {one.before:.3g} → {one.after:.3g}"
        panel.text(max(one.before, one.after), line, text, va="center", fontsize=8)
    names = [
        f"{one.sequences} sequences,\n{one.accepted} of {one.evaluations} moves"
        for one in search.rounds
    ]
    _finish(panel, names, most, room=1.0)
    panel.set_title("search (pale: before)", fontsize=10)


def _draw_bars(panel: Axes, distances: Mapping[str, float], taken: str) -> None:
    """A bar a name; that which was taken is dark."""
    lines = range(len(distances))
    colors = [KEPT if name == taken else REMOVED for name in distances]
    panel.barh(lines, list(distances.values()), height=0.7, color=colors)
    for line, value in zip(lines, distances.values(), strict=True):
        panel.text(value, line, f" {value:.3g}", va="center", fontsize=8)
    names = [fill(name, NAME_WIDTH) for name in distances]
    _finish(panel, names, max(distances.values()), room=0.5)


def _finish(panel: Axes, names: Sequence[str], most: float, *, room: float) -> None:
    """With room to the right of the bars for their values, which say more than ticks."""
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set(xlim=(0, (most or 1) * (1 + room)), xticks=[])
    panel.tick_params(length=0)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
