"""Shrink a trained Hugging Face transformer in one call: no gradients, no labels, no retraining."""

from stat_prune.checkpoint import load
from stat_prune.errors import StatPruneError
from stat_prune.methods import Method
from stat_prune.pruning import prune, prune_family
from stat_prune.result import PruningResult
from stat_prune.targets import Latency, MACs, Parameters, Speedup, Tolerance

__all__ = [
    "Latency",
    "MACs",
    "Method",
    "Parameters",
    "PruningResult",
    "Speedup",
    "StatPruneError",
    "Tolerance",
    "load",
    "prune",
    "prune_family",
]
