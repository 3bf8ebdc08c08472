"""Leave out tokens that texts of one kind never need: rows of the embeddings, and the tokenizer."""

from stat_prune.reporting.trimming_report import TrimmingReport
from stat_prune.trimming.trim import TrimmedModel, trim_vocabulary

__all__ = ["TrimmedModel", "TrimmingReport", "trim_vocabulary"]
