"""What dimensions inside heads cost, and what a probe of half of them says they are worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stat_prune.choosing.budget.allocation import Menu
from stat_prune.choosing.budget.costs import CostFunction, full_cost
from stat_prune.choosing.budget.whole_model import Measurement, WholeModel
from stat_prune.choosing.head_dims import HeadDims
from stat_prune.model.blocks import Block
from stat_prune.settings.targets import QUERY_KEY


def multiples_up_to(full: int, multiple: int) -> list[int]:
    """Multiples of a number up to another, which is the last."""
    return [n for n in range(1, full) if n % multiple == 0] + [full]


def weight_of_half(
    whole: WholeModel, everything: Measurement, place: int, curve: Tensor, step: int
) -> Tensor:
    """What half of the dimensions of one kind in one layer does, for each unit of its error.

    Parameters
    ----------
    whole : WholeModel
    everything : Measurement
        Of all dimensions.
    place : int
        Where choices have the number of these.
    curve : Tensor of shape (n + 1,), float64
        The error of 0, 1, ... dimensions.
    step : int
        What their number is a multiple of.
    """
    size = (len(curve) - 1) // 2 // step * step
    if size == 0:
        return curve.new_ones(())
    choice = [*everything.choice[:place], size, *everything.choice[place + 1 :]]
    found = whole.measure_beside(choice, everything, lambda *_: False)
    assert found is not None
    error = max(float(curve[size]), 1e-300)
    return torch.tensor(found.distance / error, dtype=torch.float64)


def menu_of_dims(
    kind: str, block: Block, dims: HeadDims, units: Tensor, cost: CostFunction, round_to: int
) -> Menu:
    """What the heads of a layer may choose from, of their query/key or value dimensions.

    Parameters
    ----------
    kind : {"query-key", "value"}
    block : Block
        With the heads that stay.
    dims : HeadDims
    units : Tensor of shape (k,), int64
        Those heads.
    cost : callable
    round_to : int
        Multiples that the number of dimensions is kept to; all are always allowed.
    """
    by_head = dims.query_key_errors if kind == QUERY_KEY else dims.value_errors
    step = dims.query_key_multiple if kind == QUERY_KEY else 1
    sizes, prices = prices_of_dims(kind, block, math.lcm(round_to, step), cost)
    errors = by_head[units].sum(0)[sizes].clamp_min(0)
    return Menu(sizes, prices, errors, float(prices[-1]))


def prices_of_dims(
    kind: str, block: Block, multiple: int, cost: CostFunction
) -> tuple[Tensor, Tensor]:
    """Numbers of dimensions that heads may have, ascending, and what they cost.

    Parameters
    ----------
    kind : {"query-key", "value"}
    block : Block
        Of heads.
    multiple : int
        Of which numbers are multiples, but for that of all.
    cost : callable

    Returns
    -------
    tuple of Tensor of shape (s,), int64, and Tensor of shape (s,), float64
    """
    full = block.query_key_size if kind == QUERY_KEY else block.unit_size
    sizes = torch.tensor(multiples_up_to(full, multiple))
    # As many for each dimension.
    none, all_ = (
        full_cost(block.with_dims(*((size, 0) if kind == QUERY_KEY else (0, size))), cost)
        for size in (0, full)
    )
    return sizes, (all_ - none) / full * sizes.double()
