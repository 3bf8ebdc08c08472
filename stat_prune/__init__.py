"""Shrink a trained Hugging Face transformer in one call: no gradients, no labels, no retraining."""

from importlib import import_module
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from stat_prune.checkpoint import load
    from stat_prune.errors import StatPruneError
    from stat_prune.methods import Method
    from stat_prune.pruning import prune, prune_family
    from stat_prune.result import PruningResult
    from stat_prune.targets import Latency, MACs, Parameters, Speedup, Tolerance
else:
    # Imported at first use: torch and transformers take seconds, and the command line's help
    # needs neither. Type checkers see the imports above.
    _MODULES = {
        "Latency": "targets",
        "MACs": "targets",
        "Method": "methods",
        "Parameters": "targets",
        "PruningResult": "result",
        "Speedup": "targets",
        "StatPruneError": "errors",
        "Tolerance": "targets",
        "load": "checkpoint",
        "prune": "pruning",
        "prune_family": "pruning",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
