"""Which channels stay: the criteria, and the sizes that a block may take under each."""

from stat_prune.methods import CriterionName
from stat_prune.selection.attention import combined, distribution, entropy, sparsity
from stat_prune.selection.candidates import Candidates, Criterion, Ranking, candidates_for
from stat_prune.selection.interpolative import interpolative
from stat_prune.selection.obs import obs
from stat_prune.selection.simple import magnitude, random, wanda_sp

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

__all__ = ["CRITERIA", "Candidates", "Criterion", "Ranking", "candidates_for"]
