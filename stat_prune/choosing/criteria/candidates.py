"""The sizes that a block may take: which units stay at each, and the error that it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stat_prune.linalg import jittered_cholesky
from stat_prune.linalg.solving.in_place import principal_part
from stat_prune.measuring.statistics import BlockStatistics, complement
from stat_prune.model.blocks import Block
from stat_prune.settings.methods import Method

#: Squared relative error below which a probe would measure rounding.
MIN_PROBED_ERROR = 1e-6


@dataclass(frozen=True)
class Ranking:
    """Units of a block from the most to the least worth keeping.

    Attributes
    ----------
    order : Tensor of shape (u,), int64
    output_errors, activation_errors : Tensor of shape (u + 1,), float64, or None
        Squared Frobenius error of the block's output, and of the consumer's input, if the first
        k = 0..u units are kept and the correction is the least-squares one. None where the
        criterion does not know them.
    """

    order: Tensor
    output_errors: Tensor | None = None
    activation_errors: Tensor | None = None


#: Ranks groups of ``unit_size`` consecutive channels: ``(statistics, unit_size, generator)``.
Criterion = Callable[[BlockStatistics, int, torch.Generator], Ranking]


@dataclass(frozen=True)
class Candidates:
    """All sizes of one block, with nested choices along each order.

    Attributes
    ----------
    block : Block
    orders : sequence of Tensor of shape (u_i,), int64
        Units in the order in which they are kept.
    prefixes : sequence of (int, int)
        For each candidate the index of its order and how many units of it are kept.
    num_groups : Tensor of shape (c,), int64
        Key/value heads kept.
    output_errors, activation_errors : Tensor of shape (c,), float64
        Relative squared errors.
    """

    block: Block
    orders: Sequence[Tensor]
    prefixes: Sequence[tuple[int, int]]
    num_groups: Tensor
    output_errors: Tensor
    activation_errors: Tensor

    @cached_property
    def num_units(self) -> Tensor:
        """Units kept by each candidate; int64 of shape (c,)."""
        return torch.tensor([length for _, length in self.prefixes])

    def units(self, index: int) -> Tensor:
        """Units that candidate `index` keeps, ascending; int64."""
        order, length = self.prefixes[index]
        return self.orders[order][:length].sort().values

    def size(self, index: int) -> tuple[Block, int, int]:
        """The block, and the units and key/value heads that candidate `index` keeps."""
        return self.block, self.prefixes[index][1], int(self.num_groups[index])

    def error_curve(self, num_points: int = 64) -> list[list[float]]:
        """Least relative error of the output (not squared) by units kept, at so many sizes."""
        units = self.num_units
        sizes = units.unique()
        chosen = torch.linspace(0, len(sizes) - 1, min(num_points, len(sizes))).round().long()
        return [
            [int(size), float(self.output_errors[units == size].min().clamp_min(0)) ** 0.5]
            for size in sizes[chosen]
        ]

    def to_probe(self) -> int:
        """The candidate to probe a block at: about half its units, and an error to speak of.

        Where half is free of error, the largest candidate that is not; rounding would decide else.
        """
        distance = (self.num_units - 0.5 * self.block.num_units).abs()
        nearest = (distance == distance.min()).nonzero().squeeze(1)
        half = nearest[self.output_errors[nearest].argmin()]
        if float(self.output_errors[half]) >= MIN_PROBED_ERROR:
            return int(half)
        noticeable = (self.output_errors >= MIN_PROBED_ERROR).nonzero().squeeze(1)
        if len(noticeable) == 0:
            return int(self.output_errors.argmax())
        return int(noticeable[self.num_units[noticeable].argmax()])


def candidates_for(
    statistics: BlockStatistics,
    criterion: Criterion,
    *,
    corrected: bool,
    generator: torch.Generator,
    remove: bool = False,
    needed: Sequence[int] = (),
) -> Candidates:
    """Rank the units of a block and price every size.

    With shared keys and values a size is a number of key/value heads and an equal number of query
    heads for each: every pair is a candidate. A block of which nothing is left loses all that its
    consumer makes, or what that varies about its mean where a bias has it.

    Parameters
    ----------
    statistics : BlockStatistics
    criterion : callable
    corrected : bool
        Whether the error is that after the least-squares correction, or that of plain removal.
    generator : torch.Generator
        For criteria that draw at random.
    remove : bool
        Whether no unit at all is a size too, where the block allows it.
    needed : sequence of int
        Units of which the best is to stay with the last, for what is no part of the output; not
        looked at where keys and values are shared.
    """
    block = statistics.block
    if block.units_per_group > 1 or not corrected or needed:  # the Gram matrix is read again
        statistics = replace(statistics, expendable=False)
    ranking = criterion(statistics, block.unit_size, generator)
    if block.units_per_group == 1:
        if needed:
            ranking = _begun_with(ranking, needed)
        orders, starts = [ranking.order], [1]
        curves = [_curves(statistics, ranking, corrected)]
    else:
        group_size = block.unit_size * block.units_per_group
        group_order = criterion(statistics, group_size, generator).order
        starts = list(range(1, block.units_per_group + 1))
        orders = [_grouped_order(block, ranking.order, group_order, top) for top in starts]
        curves = [_curves(statistics, Ranking(order), corrected) for order in orders]
    prefixes, groups, output_errors, activation_errors = [], [], [], []
    for index, (order, step, (output, activation)) in enumerate(
        zip(orders, starts, curves, strict=True)
    ):
        # Of several orders one is enough to begin with nothing.
        least = 0 if remove and block.removable and index == 0 else step
        for length in range(least, len(order) + 1, step):
            prefixes.append((index, length))
            groups.append(length // step)
            output_errors.append(output[length])
            activation_errors.append(activation[length])
    return Candidates(
        block=block,
        orders=orders,
        prefixes=prefixes,
        num_groups=torch.tensor(groups),
        output_errors=torch.stack(output_errors).cpu() / max(statistics.output_energy, 1e-300),
        activation_errors=torch.stack(activation_errors).cpu()
        / max(statistics.activation_energy, 1e-300),
    )


def decomposing_bytes(block: Block, method: Method, *, expendable: bool = False) -> int:
    """What ranking units takes beside the Gram matrix, of which an expendable one is overwritten.

    That is the consumer's weight, panels of it, and a factor of the Gram matrix's size. Pivoting by
    groups has three of that size, and other criteria up to five.
    """
    m, d = block.num_channels, block.output_size
    if method.criterion == "interpolative" and method.corrected:
        matrices = 3 if block.unit_size > 1 else 0 if expendable else 1
    else:
        matrices = 5
    return 8 * (matrices * m * m + d * m + 1024 * d)


def _begun_with(ranking: Ranking, needed: Sequence[int]) -> Ranking:
    """The best of some units before all others; its errors are not known then."""
    order = ranking.order.tolist()
    first = next(unit for unit in order if unit in needed)
    if order[0] == first:
        return ranking
    rest = [unit for unit in order if unit != first]
    return Ranking(ranking.order.new_tensor([first, *rest]))


def _grouped_order(block: Block, unit_order: Tensor, group_order: Tensor, top: int) -> Tensor:
    """The best `top` query heads of each group, group after group."""
    group_of = unit_order // block.units_per_group
    return torch.cat([unit_order[group_of == group][:top] for group in group_order])


def _curves(
    statistics: BlockStatistics, ranking: Ranking, corrected: bool
) -> tuple[Tensor, Tensor]:
    if not corrected:
        return _removal_curves(statistics, ranking.order)
    if ranking.output_errors is not None and ranking.activation_errors is not None:
        return ranking.output_errors, ranking.activation_errors
    return _corrected_curves(statistics, ranking.order)


def in_order(statistics: BlockStatistics, order: Tensor) -> Tensor:
    """Channels in the order of their units, those of no unit last; int64 of shape (m,)."""
    kept = statistics.block.channels(order.to(statistics.gram.device))
    rest = complement(kept, statistics.block.num_channels)
    return torch.cat([kept, rest])


def _corrected_curves(statistics: BlockStatistics, order: Tensor) -> tuple[Tensor, Tensor]:
    """Errors after least squares for every prefix of a given order, from one factorization.

    With ``G = L L^T`` in that order, what keeping k channels leaves is the trailing part of L:
    ``||(A - A_J T) W^T||^2 = sum_{j >= k} ||W L[:, j]||^2``.
    """
    channels, unit = in_order(statistics, order), statistics.block.unit_size
    # The jitter moves the curve by its own relative size only, and no weight is solved from it.
    factor = jittered_cholesky(principal_part(statistics.gram, channels), overwrite=True)
    output = (statistics.weight[:, channels] @ factor).square().sum(0)
    return (
        _tail_sums(output)[::unit][: len(order) + 1],
        _tail_sums(factor.square().sum(0))[::unit][: len(order) + 1],
    )


def _removal_curves(statistics: BlockStatistics, order: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of removal without correction for every prefix of an order.

    ``||A_D W_D^T||^2`` is the sum of ``(W^T W) * G`` over the dropped rows and columns.
    """
    channels, unit = in_order(statistics, order), statistics.block.unit_size
    gram = principal_part(statistics.gram, channels)
    weight = statistics.weight[:, channels]
    products = (weight.T @ weight) * gram
    # Dropping channel k beside all later ones adds its diagonal and twice its later row.
    added = 2 * products.triu(1).sum(1) + products.diagonal()
    return (
        _tail_sums(added)[::unit][: len(order) + 1].clamp_min(0),
        _tail_sums(gram.diagonal())[::unit][: len(order) + 1],
    )


def _tail_sums(values: Tensor) -> Tensor:
    """``out[k] = values[k:].sum()`` for k = 0..len(values)."""
    sums = values.flip(0).cumsum(0).flip(0)
    return torch.cat([sums, sums.new_zeros(1)])
