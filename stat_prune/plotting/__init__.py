"""Pictures of what pruning did; every function returns a matplotlib ``Figure``."""

from stat_prune.plotting.attention import attention_figure, head_heat_map
from stat_prune.plotting.comparison import predicted_against_measured, score_curves
from stat_prune.plotting.pruned import error_curves, overview, what_was_kept
from stat_prune.plotting.search import search_stages

__all__ = [
    "attention_figure",
    "error_curves",
    "head_heat_map",
    "overview",
    "predicted_against_measured",
    "score_curves",
    "search_stages",
    "what_was_kept",
]
