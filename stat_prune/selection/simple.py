"""Baselines that look at one unit at a time, or at none."""

from __future__ import annotations

import torch

from stat_prune.selection.candidates import Ranking
from stat_prune.statistics import BlockStatistics


def magnitude(statistics: BlockStatistics, unit_size: int, generator: torch.Generator) -> Ranking:
    """Units by the Frobenius norm of the consumer's columns that read them; no data is used.

    Parameters
    ----------
    statistics : BlockStatistics
    unit_size : int
    generator : torch.Generator
        Not used.
    """
    energy = statistics.weight.square().sum(0).reshape(-1, unit_size).sum(1)
    return Ranking(energy.argsort(descending=True, stable=True).cpu())


def random(statistics: BlockStatistics, unit_size: int, generator: torch.Generator) -> Ranking:
    """Units in an order drawn from `generator`."""
    return Ranking(torch.randperm(statistics.block.num_channels // unit_size, generator=generator))
