"""Measures of what a model can do: GLUE, SQuAD, similarity, perplexity, masked tokens.

And of how far it is from the one that it was made from.
"""

from stat_prune.data.glue_tasks import GLUE_TASKS
from stat_prune.evaluation.divergence import divergence
from stat_prune.evaluation.glue import GlueData, evaluate_glue, glue_examples, read_glue
from stat_prune.evaluation.masked import masked_accuracy
from stat_prune.evaluation.perplexity import perplexity
from stat_prune.evaluation.similarity import (
    cosine_to_reference,
    embed,
    neighbor_recall,
    sts_spearman,
)
from stat_prune.evaluation.squad import answer_questions, evaluate_squad
from stat_prune.evaluation.squad_data import Question, read_squad
from stat_prune.evaluation.squad_metrics import squad_scores

__all__ = [
    "GLUE_TASKS",
    "GlueData",
    "Question",
    "answer_questions",
    "cosine_to_reference",
    "divergence",
    "embed",
    "evaluate_glue",
    "evaluate_squad",
    "glue_examples",
    "masked_accuracy",
    "neighbor_recall",
    "perplexity",
    "read_glue",
    "read_squad",
    "squad_scores",
    "sts_spearman",
]
