"""Pivoted Cholesky in torch, for devices without LAPACK and for pivots that LAPACK cannot draw."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_BLOCK = 64


def blocked_cholesky(
    work: Float64[Tensor, "m m"],
    threshold: float,
    limit: int,
    choose: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Float64[Tensor, "m r"], Int64[Tensor, " m"]]:
    """Factor and order, on any device; `work` is overwritten by the Schur complement.

    `choose` names the next pivot (shape (1,), int64) from the remaining diagonal, where pivots
    already taken stand at -inf; default: the largest.

    Rows are not swapped: the pivot's row of the Schur complement is read where it lies, so that
    no step waits for the device. One synchronisation a block finds out whether rank ran out.
    """
    m = len(work)
    floor = max(threshold, torch.finfo(torch.float64).tiny)
    factor = work.new_zeros(m, limit)
    order = torch.empty(limit, dtype=torch.int64, device=work.device)
    remaining = work.diagonal().clone()
    rank = 0
    for start in range(0, limit, _BLOCK):
        stop = min(start + _BLOCK, limit)
        panel = factor[:, start:stop]
        found = torch.empty(stop - start, dtype=torch.float64, device=work.device)
        for j in range(stop - start):
            pivot = choose(remaining) if choose else remaining.argmax().reshape(1)
            value = remaining[pivot]
            row = work[pivot].squeeze(0)
            column = torch.addmv(row, panel[:, :j], panel[pivot, :j].squeeze(0), alpha=-1.0)
            column *= (remaining > -torch.inf) * value.clamp(min=floor).rsqrt()
            panel[:, j] = column
            remaining -= column.square()
            remaining[pivot] = -torch.inf
            order[start + j], found[j] = pivot[0], value[0]
        valid = int((found > threshold).long().cumprod(0).sum())
        rank = start + valid
        if valid < stop - start:
            break
        work.addmm_(panel, panel.T, alpha=-1.0)
    chosen = torch.zeros(m, dtype=torch.bool, device=work.device)
    chosen[order[:rank]] = True
    rest = (~chosen).nonzero().squeeze(1)
    return factor[:, :rank].contiguous(), torch.cat([order[:rank], rest])
