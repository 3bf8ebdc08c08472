"""Heads by what they attend to: criteria that look at attention weights, not at activations.

After "Attention-Guided Pruning" (Fardeen and Sameer, IJISAE 2022), who score the heads of
DistilBERT by entropy, sparsity and the distribution of attention; the definitions are this
package's. Heads that attend sharply, and to other tokens than special ones and themselves, stay.

Scores are compared within a layer. A key/value head that several query heads share has the sum of
their scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stat_prune.choosing.criteria.candidates import Ranking
from stat_prune.errors import DataError
from stat_prune.measuring.statistics import BlockStatistics


def entropy(statistics: BlockStatistics, unit_size: int, generator: torch.Generator) -> Ranking:
    """Heads of the least normalised entropy stay.

    Parameters
    ----------
    statistics : BlockStatistics
        Of heads, with their attention.
    unit_size : int
    generator : torch.Generator
        Not used.
    """
    return _ranking(statistics, unit_size, _sharpness(statistics))


def sparsity(statistics: BlockStatistics, unit_size: int, generator: torch.Generator) -> Ranking:
    """Heads with the largest share of keys that they hardly look at stay; as `entropy`."""
    return _ranking(statistics, unit_size, _measured(statistics, "sparsity"))


def distribution(
    statistics: BlockStatistics, unit_size: int, generator: torch.Generator
) -> Ranking:
    """Heads with the largest share of attention on other ordinary tokens stay; as `entropy`.

    That is, on tokens that are neither special nor the query itself.

    Raises
    ------
    DataError
        If the tokenizer is not known, and so neither which tokens are special.
    """
    return _ranking(statistics, unit_size, _elsewhere(statistics))


def combined(statistics: BlockStatistics, unit_size: int, generator: torch.Generator) -> Ranking:
    """Heads by the mean of their ranks under the three other criteria; as `distribution`."""
    scores = (
        _sharpness(statistics),
        _measured(statistics, "sparsity"),
        _elsewhere(statistics),
    )
    ranks = torch.stack([score.argsort(stable=True).argsort() for score in scores])
    return _ranking(statistics, unit_size, ranks.double().mean(0))


def _sharpness(statistics: BlockStatistics) -> Tensor:
    # No query sees two keys where every sequence is one token: all heads are then alike.
    return -_measured(statistics, "normalized_entropy").nan_to_num()


def _elsewhere(statistics: BlockStatistics) -> Tensor:
    return -_measured(statistics, "to_special") - _measured(statistics, "to_current")


def _measured(statistics: BlockStatistics, name: str) -> Tensor:
    assert statistics.attention is not None, "the collecting stage measures it"
    if name not in statistics.attention:
        raise DataError(
            "The criteria attention-distribution and attention-combined ask which tokens are "
            "special: pass tokenizer=, the one of the model, or use attention-entropy."
        )
    return statistics.attention[name]


def _ranking(statistics: BlockStatistics, unit_size: int, scores: Tensor) -> Ranking:
    """Units of `unit_size` channels, heads or groups of heads, by descending score."""
    totals = scores.reshape(-1, unit_size // statistics.block.unit_size).sum(1)
    return Ranking(totals.argsort(descending=True, stable=True))
