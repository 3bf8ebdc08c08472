"""Optimal Brain Surgeon for structures, the pruner of ZipLM."""

from __future__ import annotations

import torch

from stat_prune.choosing.criteria.candidates import Ranking
from stat_prune.linalg import backward_elimination, block_pivoting
from stat_prune.measuring.statistics import BlockStatistics


def obs(statistics: BlockStatistics, unit_size: int, generator: torch.Generator) -> Ranking:
    """Backward elimination: the unit that raises the block's output error least leaves first.

    ZipLM (Kurtic, Frantar and Alistarh 2023, arXiv:2302.04089), algorithm 1: the increase is
    ``tr(W_S ((H^-1)_SS)^-1 W_S^T)`` for the columns S of a unit, with ``H = A^T A``; the other
    columns and ``H^-1`` are updated after each removal, of one unit at a time. As the error is
    quadratic, the updated weight is the least-squares one that `choosing.correction.fold` solves
    for. Their damping of H is here no larger than its inversion needs.

    ZipLM chooses the sizes by a random search (SPDY) over weights of the blocks' errors, relative
    to the output's energy, with the loss of the stitched model as its measure. Method ``"obs"``
    has a deterministic stand-in, where that search starts: `choosing.budget.allocation` on the
    relative errors, all of weight one. ``"obs-probed"`` weighs them by the measured effect of each
    block on the output. No module leaves as a whole.

    Parameters
    ----------
    statistics : BlockStatistics
    unit_size : int
    generator : torch.Generator
        Not used; the choice is deterministic.
    """
    if unit_size == 1:
        return Ranking(backward_elimination(statistics.gram, statistics.weight).cpu())
    blocks = block_pivoting(statistics.gram, statistics.weight, unit_size, direction="backward")
    return Ranking(blocks.order.cpu(), blocks.residual_curve, blocks.activation_curve)
