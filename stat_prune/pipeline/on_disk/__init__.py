"""Pruning checkpoints that are larger than memory, one layer at a time."""

from stat_prune.pipeline.on_disk.checkpoint_pruning import prune_checkpoint
from stat_prune.reporting.result import PrunedCheckpoint

__all__ = ["PrunedCheckpoint", "prune_checkpoint"]
