"""Measures of what a model can do: GLUE, sentence similarity, perplexity."""

from stat_prune.evaluation.glue import GLUE_TASKS, GlueData, evaluate_glue, read_glue
from stat_prune.evaluation.perplexity import perplexity
from stat_prune.evaluation.similarity import (
    cosine_to_reference,
    embed,
    neighbor_recall,
    sts_spearman,
)

__all__ = [
    "GLUE_TASKS",
    "GlueData",
    "cosine_to_reference",
    "embed",
    "evaluate_glue",
    "neighbor_recall",
    "perplexity",
    "read_glue",
    "sts_spearman",
]
