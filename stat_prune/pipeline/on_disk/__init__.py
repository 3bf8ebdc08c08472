"""Pruning checkpoints that are larger than memory, one layer at a time."""

from stat_prune.pipeline.on_disk.checkpoint_pruning import PrunedCheckpoint, prune_checkpoint

__all__ = ["PrunedCheckpoint", "prune_checkpoint"]
