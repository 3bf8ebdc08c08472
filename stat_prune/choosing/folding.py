"""Candidates become weights: the correction of every block, folded into its consumer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stat_prune.choosing.correction import fold
from stat_prune.choosing.criteria import Candidates
from stat_prune.choosing.measured import Measured
from stat_prune.machine.distributed import barrier, gather, is_mine
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.settings.methods import Method


def fold_all(
    recipe: Method, measured: Sequence[Measured], choice: Sequence[int], what: str
) -> list[FoldedConsumer]:
    """Fold one candidate of each block, whose statistics are in memory."""
    mine = [number for number in range(len(choice)) if is_mine(number)]

    def fold_mine() -> dict[int, FoldedConsumer]:
        with gathered_numerical_warnings(f"folding {what}"):
            return {number: fold_one(recipe, measured[number], choice[number]) for number in mine}

    return gather(barrier(fold_mine))


def fold_candidate(
    recipe: Method, statistics: BlockStatistics, candidates: Candidates, index: int
) -> FoldedConsumer:
    """Fold one candidate; after the correction its error is what the decomposition said."""
    known = float(candidates.output_errors[index].clamp_min(0)) ** 0.5 if recipe.corrected else None
    return fold(statistics, candidates.units(index), corrected=recipe.corrected, output_error=known)


def fold_one(recipe: Method, measured: Measured, index: int) -> FoldedConsumer:
    """Fold one candidate of a block whose statistics are in memory."""
    assert measured.statistics is not None
    return fold_candidate(recipe, measured.statistics, measured.candidates, index)


def in_float32(folded: FoldedConsumer) -> FoldedConsumer:
    """The same with half the memory, for one candidate after another to be measured."""
    return dataclasses.replace(folded, weight=folded.weight.float())
