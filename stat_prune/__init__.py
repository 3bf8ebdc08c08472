"""Shrink a trained Hugging Face transformer in one call: no gradients, no labels, no retraining."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

__all__ = [
    "Architecture",
    "Attention",
    "Baseline",
    "Bytes",
    "Calibration",
    "Constraints",
    "FeedForward",
    "Latency",
    "MACs",
    "Method",
    "Parameters",
    "PruningResult",
    "Speedup",
    "StatPruneError",
    "Target",
    "Tolerance",
    "estimate",
    "finish",
    "infer_architecture",
    "load",
    "prune",
    "prune_checkpoint",
    "prune_family",
    "register_architecture",
    "trim_vocabulary",
]

if TYPE_CHECKING:
    __version__: str
    from stat_prune.checkpoints.loading import load
    from stat_prune.errors import StatPruneError
    from stat_prune.families import Architecture, Attention, FeedForward, register_architecture
    from stat_prune.finishing import finish
    from stat_prune.inferring import infer_architecture
    from stat_prune.pipeline.foreseeing.estimate import estimate
    from stat_prune.pipeline.on_disk import prune_checkpoint
    from stat_prune.pruning import prune, prune_family
    from stat_prune.reporting.result import PruningResult
    from stat_prune.settings.methods import Baseline, Method
    from stat_prune.settings.options import Calibration, Constraints
    from stat_prune.settings.targets import (
        Bytes,
        Latency,
        MACs,
        Parameters,
        Speedup,
        Target,
        Tolerance,
    )
    from stat_prune.trimming import trim_vocabulary
else:
    # Imported at first use: torch and transformers take seconds, and the command line's help
    # needs neither. Type checkers see the imports above.
    _MODULES = {
        "Architecture": "families",
        "Attention": "families",
        "Baseline": "settings.methods",
        "Bytes": "settings.targets",
        "Calibration": "settings.options",
        "Constraints": "settings.options",
        "FeedForward": "families",
        "Latency": "settings.targets",
        "MACs": "settings.targets",
        "Method": "settings.methods",
        "Parameters": "settings.targets",
        "PruningResult": "reporting.result",
        "Speedup": "settings.targets",
        "StatPruneError": "errors",
        "Target": "settings.targets",
        "Tolerance": "settings.targets",
        "estimate": "pipeline.foreseeing.estimate",
        "finish": "finishing",
        "infer_architecture": "inferring",
        "load": "checkpoints.loading",
        "prune": "pruning",
        "prune_checkpoint": "pipeline.on_disk",
        "prune_family": "pruning",
        "register_architecture": "families",
        "trim_vocabulary": "trimming",
    }

    def __getattr__(name):
        if name == "__version__":
            return metadata.version("stat-prune")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__, "__version__"})
