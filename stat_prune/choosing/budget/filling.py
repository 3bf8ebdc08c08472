"""A budget that is filled with units of several blocks in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def filled(
    order: Iterable[tuple[int, int]],
    staying: Sequence[Sequence[int]],
    price: Callable[[int, int], float],
    budget: float,
) -> list[Tensor]:
    """Take units in an order; one that is too dear for what is left is passed over.

    Parameters
    ----------
    order : iterable of (int, int)
        Block and unit, best first.
    staying : sequence of sequence of int
        By block, units that are kept whatever they cost.
    price : callable
        ``(block, k)``: what one more unit of a block costs of which k are kept.
    budget : float
        For units beside those that stay.

    Returns
    -------
    list of Tensor of shape (k,), int64
        Units kept, ascending, by block.
    """
    kept = [set(units) for units in staying]
    for block, unit in order:
        own = kept[block]
        if unit not in own and (extra := price(block, len(own))) <= budget:
            own.add(unit)
            budget -= extra
    return [torch.tensor(sorted(units), dtype=torch.int64) for units in kept]
