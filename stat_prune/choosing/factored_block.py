"""Corrections of many candidates of one block, from one factorization of its Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stat_prune.choosing.criteria import Candidates
from stat_prune.choosing.criteria.candidates import in_order
from stat_prune.linalg import jittered_cholesky
from stat_prune.linalg.solving.in_place import principal_part
from stat_prune.linalg.solving.least_squares import unit_scale
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.blocks import Block
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.settings.methods import Method

#: What rounding in float32 may add to the output: of the error that a candidate has, and of the
#: output itself.
_OF_ERROR, _OF_OUTPUT = 1e-2, 1e-5


class FactoredBlock:
    """Folds candidates in float32, to be measured one after another.

    With ``G = D L L^T D`` in the order in which channels are kept, D their norms, the correction of
    the first k, ``W G[:, :k] G_kk^-1``, is ``(W D L)[:, :k] L_kk^-1 D_kk^-1``: one triangular
    solve, where `choosing.correction.fold` has a factorization, two solves and the cross products.
    The solve is backward stable (Higham 2002, section 8.1): as the rows of L have norm one, the
    output changes by rounding times ``||W' D||``. Candidates of which that is much are not folded
    here.

    Parameters
    ----------
    statistics : BlockStatistics
    candidates : Candidates
        Of one order.
    """

    def __init__(self, statistics: BlockStatistics, candidates: Candidates) -> None:
        self._statistics, self._candidates = statistics, candidates
        self._channels = in_order(statistics, candidates.orders[0])
        gram = principal_part(statistics.gram, self._channels)
        scale = unit_scale(gram)
        # The jitter is far below what is tolerated of rounding in float32.
        factor = jittered_cholesky(gram.mul_(scale).mul_(scale[:, None]), overwrite=True)
        weight = statistics.weight[:, self._channels].double() / scale
        self._products = (weight @ factor).float()
        self._factor, self._scale = factor.float(), scale.float()

    def fold(self, index: int) -> FoldedConsumer | None:
        """The consumer once candidate `index` is left, in float32; None where rounding is much.

        And where nothing leaves: that is exact without solving.
        """
        statistics, candidates = self._statistics, self._candidates
        block, units = statistics.block, candidates.units(index)
        size = len(units) * block.unit_size
        if size == block.num_channels:
            return None
        folded = torch.linalg.solve_triangular(
            self._factor[:size, :size], self._products[:, :size], upper=False, left=False
        )
        error = float(candidates.output_errors[index].clamp_min(0)) ** 0.5
        rounding = torch.finfo(torch.float32).eps * float(folded.norm())
        allowed = max(_OF_ERROR * error, _OF_OUTPUT) * statistics.output_energy**0.5
        if not rounding <= allowed:
            return None
        kept, ascending = self._channels[:size].sort()
        folded, bias = (folded * self._scale[:size])[:, ascending], None
        if statistics.mean is not None:
            mean = statistics.mean
            bias = statistics.weight.double() @ mean - folded.double() @ mean[kept]
        return FoldedConsumer(block, units, folded, bias, error)


def is_factored(block: Block, recipe: Method) -> bool:
    """Whether one factor serves all candidates of a block: they have one order, and a correction.

    Heads that share keys have an order for each number of them.
    """
    return recipe.corrected and block.units_per_group == 1


def num_factored(blocks: Sequence[Block], recipe: Method) -> int:
    """Numbers in float32 that factored blocks keep."""
    return sum(
        block.num_channels * (block.num_channels + block.output_size)
        for block in blocks
        if is_factored(block, recipe)
    )


def factoring_bytes(blocks: Sequence[Block], recipe: Method) -> int:
    """The most that factoring one of some blocks takes beside what is kept, in float64.

    The factor, and the weight in its order, twice: as it is, and multiplied.
    """
    return max(
        (
            8 * block.num_channels * (block.num_channels + 2 * block.output_size)
            for block in blocks
            if is_factored(block, recipe)
        ),
        default=0,
    )
