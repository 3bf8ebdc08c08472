"""The finish: a few numbers of a pruned model fitted to the dense model's own outputs."""

from stat_prune.finishing.results import Finishing, finish, with_finish

__all__ = ["Finishing", "finish", "with_finish"]
