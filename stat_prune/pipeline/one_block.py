"""What is done with one block, wherever its statistics are."""

from __future__ import annotations

import numpy as np
import torch

from stat_prune.choosing.criteria import Candidates, candidates_for, criterion_of
from stat_prune.choosing.measured import Measured
from stat_prune.choosing.plan import BlockPlan
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.pipeline.run import Run
from stat_prune.surgery.alignment import alignment_heads


def candidates_of(run: Run, statistics: BlockStatistics, number: int) -> Candidates:
    """Rank the units of the block with this number among those to be pruned."""
    recipe = run.settings.recipe
    # A stream of its own for each block, whichever process draws from it.
    own = np.random.SeedSequence([run.settings.seed, number]).generate_state(1)[0]
    return candidates_for(
        statistics,
        criterion_of(recipe),
        corrected=recipe.corrected,
        generator=torch.Generator().manual_seed(int(own)),
        remove=run.settings.removes_blocks,
        needed=alignment_heads(run.model, run.blocks[number]),
    )


def planned(folded: FoldedConsumer, measured: Measured, index: int) -> BlockPlan:
    """A candidate of a block, folded, with what is known of it."""
    sizes = measured.candidates
    return BlockPlan(
        folded=folded,
        activation_error=float(sizes.activation_errors[index].clamp_min(0)) ** 0.5,
        sensitivity=measured.sensitivity(index),
        error_curve=sizes.error_curve(),
    )
