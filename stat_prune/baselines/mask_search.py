"""Which heads and neurons a diagonal, then a block-diagonal, Fisher information keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stat_prune.baselines.ranking import pairs_within, ranked_by_kind
from stat_prune.choosing.budget.costs import CostFunction
from stat_prune.model.blocks import Block


def search(
    blocks: Sequence[Block],
    importance: Mapping[str, Tensor],
    cost: CostFunction,
    budget: float,
) -> dict[str, Tensor]:
    """The units of most importance within a budget (Kwon et al. 2022, algorithm 1).

    For every number of heads the most important ones are taken, and the most important neurons fill
    what is left of the budget; of these pairs the one with the most importance in all is chosen.

    Parameters
    ----------
    blocks : sequence of Block
    importance : mapping of str to Tensor of shape (u,)
        By block name.
    cost : callable
    budget : float
        What one unit a block costs, or more.

    Returns
    -------
    dict of str to Tensor of shape (k,), int64
        Units kept, ascending, by block name.
    """
    heads, neurons = ranked_by_kind(blocks, importance, cost)
    saved_by_neurons = torch.cat([torch.zeros(1, dtype=torch.float64), neurons.scores.cumsum(0)])
    best, most, saved_by_heads = (0, 0), -1.0, 0.0
    for num_heads, num_neurons in pairs_within(heads, neurons, budget):
        if num_heads:
            saved_by_heads += float(heads.scores[num_heads - 1])
        saved = saved_by_heads + float(saved_by_neurons[num_neurons])
        if saved > most:
            best, most = (num_heads, num_neurons), saved
    return heads.units(best[0]) | neurons.units(best[1])


def rearrange(gradients: Tensor, kept: Tensor) -> Tensor:
    """Swap units of one block for others where they lose less together (ibid., algorithm 2).

    The units that leave, P, cost ``sum_{i, j in P} F_ij`` with the Fisher information ``F`` of the
    block's masks, which without its off-diagonal entries is what `search` saw. Every unit of P in
    turn, the least important first, is exchanged for the kept unit with which P costs least, if
    that is less than P costs with it.

    Parameters
    ----------
    gradients : Tensor of shape (n, u)
        Of each example's loss by the mask of each unit.
    kept : Tensor of shape (k,), int64

    Returns
    -------
    Tensor of shape (k,), int64
        Ascending.
    """
    columns = gradients.double().cpu()
    fisher = columns.T @ columns
    diagonal = fisher.diagonal()
    leaves = torch.ones(len(fisher), dtype=torch.bool)
    leaves[kept] = False
    if bool(leaves.all()) or not bool(leaves.any()):
        return kept
    leaving = leaves.nonzero().squeeze(1)
    # What a unit shares with P: F 1_P.
    shared = fisher[:, leaving].sum(1)
    for unit in leaving[diagonal[leaving].argsort(stable=True)].tolist():
        # Without `unit`, P and another unit q add 2 (F 1_{P - unit})_q + F_qq.
        added = 2 * (shared - fisher[:, unit]) + diagonal
        candidates = added.masked_fill(leaves, torch.inf)
        other = int(candidates.argmin())
        if float(candidates[other]) < float(added[unit]):
            leaves[unit], leaves[other] = False, True
            shared += fisher[:, other] - fisher[:, unit]
    return (~leaves).nonzero().squeeze(1)
