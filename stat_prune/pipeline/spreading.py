"""A run's budget spread over its blocks, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stat_prune.choosing.budget.choice import choose
from stat_prune.choosing.criteria import Candidates
from stat_prune.machine.distributed import agreed
from stat_prune.pipeline.run import Run
from stat_prune.settings.targets import Target


def spread(
    run: Run,
    candidates: Sequence[Candidates],
    weights: Sequence[float] | Sequence[Tensor],
    target: Target,
    *,
    even: bool = False,
    share: float | None = None,
    levels: int | None = None,
) -> list[int]:
    """The candidate of each block, as `choose` (`choosing.budget.choice`) has it for this run."""
    # Rounding may differ between processors; the choice may not.
    return agreed(
        lambda: choose(
            candidates,
            weights,
            target,
            seq_length=run.lengths(target),
            untouched=run.untouched,
            round_to=run.settings.round_to,
            uniform=run.settings.uniform,
            even=even,
            timed=run.timed(target),
            share=share,
            levels=levels,
        )
    )
