"""What heads attend to: one statistic of all heads, and single heads on one sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from textwrap import wrap

import numpy as np
from torch import Tensor

from stat_prune.measuring.head_statistics import HeadStatistics
from stat_prune.reporting.plotting.style import SEQUENTIAL, Figure, figure

#: Labels with their units.
LABELS = {
    "entropy": "entropy of attention (nats)",
    "normalized_entropy": "normalised entropy (uniform is 1)",
    "sparsity": "share of visible keys below the threshold",
    "gini": "Gini coefficient of weights (uniform is 0)",
    "distance": "mean attended distance (tokens)",
    "confidence": "mean of the largest weight",
    "to_current": "share of attention on the token itself",
    "to_neighbors": "share of attention on the tokens beside it",
    "to_special": "share of attention on special tokens",
    "to_content": "share of attention on content words",
}


def head_heat_map(
    statistics: HeadStatistics,
    statistic: str,
    *,
    plan: Mapping[str, Collection[int]] | None = None,
) -> Figure:
    """One statistic of every head of a model; removed heads are crossed out.

    Parameters
    ----------
    statistics : HeadStatistics
    statistic : str
        One of its names.
    plan : mapping of str to collection of int, optional
        Heads kept by block name, as in `PruningResult.plan`.
    """
    table = statistics.table(statistic)
    layers, heads = table.shape
    fig = figure(min(2.5 + 0.42 * heads, 12), min(max(2.6, 1.4 + 0.4 * layers), 9))
    axes = fig.subplots()
    image = axes.imshow(np.ma.masked_invalid(table), cmap=SEQUENTIAL, aspect="auto")
    removed = [
        (layer, head)
        for layer, (name, values) in enumerate(statistics.values.items())
        for head in range(len(values[statistic]))
        if plan is not None and name in plan and head not in set(plan[name])
    ]
    if removed:
        y, x = zip(*removed, strict=True)
        for color, width, size in (("white", 4, 8), ("black", 1.5, 7)):
            axes.plot(x, y, "x", color=color, markeredgewidth=width, markersize=size)
    axes.set(xlabel="head" + (" (× removed)" if removed else ""), ylabel="layer")
    axes.set_xticks(range(0, heads, max(1, heads // 16)))
    axes.set_yticks(range(0, layers, max(1, layers // 16)))
    label = "\n".join(wrap(LABELS.get(statistic, statistic), 24))
    fig.colorbar(image, ax=axes, pad=0.02, label=label)
    return fig


def attention_figure(tokens: Sequence[str], maps: Mapping[str, Tensor | np.ndarray]) -> Figure:
    """Attention of single heads on one sentence, a panel a head.

    Parameters
    ----------
    tokens : sequence of str
        Of n tokens.
    maps : mapping of str to Tensor or ndarray of shape (n, n)
        By title; row i holds the weights with which token i attends, as
        `stat_prune.attention.attention_maps` gives them.
    """
    size = min(max(3.0, 1.4 + 0.24 * len(tokens)), 8.0)
    fig = figure(size * len(maps) + 0.8, size + 0.2)
    panels = fig.subplots(1, len(maps), squeeze=False)[0]
    labels = [token if len(token) <= 14 else token[:13] + "…" for token in tokens]
    # One scale for all panels: what is dark in one is dark in the other.
    top = max(float(np.asarray(weights).max()) for weights in maps.values())
    for panel, (title, weights) in zip(panels, maps.items(), strict=True):
        image = panel.imshow(np.asarray(weights), cmap=SEQUENTIAL, vmin=0, vmax=top)
        panel.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=8)
        panel.set_yticks(range(len(tokens)), labels, fontsize=8)
        panel.set(title=title, xlabel="attended to", ylabel="attending")
    fig.colorbar(image, ax=list(panels), label="attention weight", pad=0.02, shrink=0.8)
    return fig
