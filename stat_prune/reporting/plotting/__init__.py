"""Pictures of what pruning did; every function returns a matplotlib ``Figure``."""

from stat_prune.reporting.plotting.attention_plots import attention_figure, head_heat_map
from stat_prune.reporting.plotting.comparison_plots import predicted_against_measured, score_curves
from stat_prune.reporting.plotting.pruned import (
    dimensions_kept,
    error_curves,
    overview,
    what_was_kept,
)
from stat_prune.reporting.plotting.search_plots import search_stages

__all__ = [
    "attention_figure",
    "dimensions_kept",
    "error_curves",
    "head_heat_map",
    "overview",
    "predicted_against_measured",
    "score_curves",
    "search_stages",
    "what_was_kept",
]
