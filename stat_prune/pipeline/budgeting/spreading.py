"""A budget spread over its blocks, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stat_prune.choosing.budget.choice import choose
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.measured import Measured
from stat_prune.machine.distributed import broadcast
from stat_prune.pipeline.run import Run


def spread(
    run: Run,
    measured: Sequence[Measured],
    weights: Sequence[float | Tensor],
    budget: Budget,
    *,
    even: bool = False,
    share: float | None = None,
    levels: int | None = None,
) -> list[int]:
    """The candidate of each block, as `choose` (`choosing.budget.choice`) has it for this run."""
    # Rounding may differ between processors; the choice may not.
    return broadcast(
        lambda: choose(
            [one.candidates for one in measured],
            weights,
            budget,
            untouched=run.untouched,
            round_to=run.settings.round_to,
            uniform=run.settings.uniform,
            even=even,
            share=share,
            levels=levels,
        )
    )
