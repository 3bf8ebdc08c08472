"""Looking inside: what attention heads attend to, before and after pruning."""

from stat_prune.attention.attention_maps import attention_maps
from stat_prune.attention.head_comparison import Comparison, compare_removed
from stat_prune.attention.heads import head_statistics
from stat_prune.attention.tokens import TokenClasses
from stat_prune.measuring.head_statistics import HeadStatistics

__all__ = [
    "Comparison",
    "HeadStatistics",
    "TokenClasses",
    "attention_maps",
    "compare_removed",
    "head_statistics",
]
