"""Baselines that look at one unit at a time, or at none."""

from __future__ import annotations

import torch

from stat_prune.choosing.criteria.candidates import Ranking
from stat_prune.measuring.statistics import BlockStatistics


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


def wanda_sp(statistics: BlockStatistics, unit_size: int, generator: torch.Generator) -> Ranking:
    """Units by Wanda's score, ``|W_ij| ||X_j||_2``, summed over the weights that read them.

    Structured as where FLAP compares with it (An et al. 2024, arXiv:2312.11983); the score is that
    of Sun et al. 2023 (arXiv:2306.11695), section 3. They measure each layer once those before it
    are pruned; here all are measured on the dense model.

    Parameters
    ----------
    statistics : BlockStatistics
    unit_size : int
    generator : torch.Generator
        Not used.
    """
    squares = statistics.gram.diagonal()
    if statistics.mean is not None:  # the Gram matrix is of deviations from it
        squares = squares + statistics.num_tokens * statistics.mean.square()
    scores = statistics.weight.abs().sum(0) * squares.sqrt()
    scores = scores.reshape(-1, unit_size).sum(1)
    return Ranking(scores.argsort(descending=True, stable=True).cpu())


def random(statistics: BlockStatistics, unit_size: int, generator: torch.Generator) -> Ranking:
    """Units in an order drawn from `generator`."""
    return Ranking(torch.randperm(statistics.block.num_channels // unit_size, generator=generator))
