"""The second stage, for those who have time and perhaps labels: masks, a budget, a teacher.

VTrans (Dutta, Gupta and Agarwal 2024, arXiv:2406.05276): variational information bottlenecks on
heads and neurons, trained under a constraint on the cost, with the dense model as a teacher.
"""

from stat_prune.vib.config import MODES, VIBConfig
from stat_prune.vib.finetuning import vib_finetune

__all__ = ["MODES", "VIBConfig", "vib_finetune"]
