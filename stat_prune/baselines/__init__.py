"""Published methods that are pipelines of their own, from data to plan, to compare with.

A method that only ranks units is a criterion in `stat_prune.choosing.criteria` instead.
"""

from __future__ import annotations

from collections.abc import Callable

from stat_prune.baselines import fisher, flap, kcm, kprune, stat_paper
from stat_prune.choosing.plan import BlockPlan
from stat_prune.pipeline.run import Run
from stat_prune.settings.targets import Target

#: By the names in `stat_prune.settings.methods.PEERS`: from a run and a target to a plan for each
#: block.
PLANNERS: dict[str, Callable[[Run, Target], list[BlockPlan]]] = {
    "flap": flap.plan,
    "stat-paper": stat_paper.plan,
    "fisher": fisher.plan,
    "fisher-untuned": fisher.plan_untuned,
    "kprune": kprune.plan,
    "kcm": kcm.plan,
    "kcm-untuned": kcm.plan_untuned,
}
