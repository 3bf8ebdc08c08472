"""Which channels stay: the criteria, and the sizes that a block may take under each."""

from stat_prune.choosing.criteria.attention_scores import combined, distribution, entropy, sparsity
from stat_prune.choosing.criteria.candidates import Candidates, Criterion, Ranking, candidates_for
from stat_prune.choosing.criteria.decompositions import interpolative
from stat_prune.choosing.criteria.obs import obs
from stat_prune.choosing.criteria.simple import magnitude, random, wanda_sp
from stat_prune.settings.methods import CriterionName, Method

CRITERIA: dict[CriterionName, Criterion] = {
    "attention-combined": combined,
    "attention-distribution": distribution,
    "attention-entropy": entropy,
    "attention-sparsity": sparsity,
    "interpolative": interpolative,
    "magnitude": magnitude,
    "obs": obs,
    "random": random,
    "wanda-sp": wanda_sp,
}


def criterion_of(method: Method) -> Criterion:
    """The function that ranks units for a method."""
    return method.criterion if callable(method.criterion) else CRITERIA[method.criterion]


__all__ = ["CRITERIA", "Candidates", "Criterion", "Ranking", "candidates_for", "criterion_of"]
