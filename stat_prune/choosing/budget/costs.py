"""What may be spent, and what a candidate costs: multiply-accumulates, parameters or time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stat_prune.choosing.criteria import Candidates
from stat_prune.measuring.timing import TimedModel
from stat_prune.model.blocks import Block
from stat_prune.settings.targets import CostFunction as CostFunction
from stat_prune.settings.targets import Target


def candidate_costs(candidates: Candidates, indices: Tensor, cost: CostFunction) -> Tensor:
    """Cost of some candidates; float64, of the shape of `indices`."""
    units, groups = candidates.num_units[indices], candidates.num_groups[indices]
    pairs = zip(units.tolist(), groups.tolist(), strict=True)
    return torch.tensor(
        [cost(candidates.block, units, groups) for units, groups in pairs], dtype=torch.float64
    )


def full_cost(block: Block, cost: CostFunction) -> float:
    """Cost of a block as it is."""
    return cost(block, block.num_units, block.num_groups)


@dataclass(frozen=True)
class Budget:
    """A target for one model and what it reads: what is to be kept, and what that is counted in.

    Attributes
    ----------
    target : Target
    lengths : mapping of str to float
        Tokens or positions a sequence at which MACs are counted, by the name of their mask.
    main_mask : str
        Of those that are read first.
    timed : TimedModel or None
        The dense model on the batch that a `Latency` names; None for other targets.
    """

    target: Target
    lengths: Mapping[str, float]
    main_mask: str
    timed: TimedModel | None = None

    @property
    def seq_length(self) -> float:
        """Tokens a sequence, of those that are read first."""
        return self.lengths[self.main_mask]

    @property
    def cost(self) -> CostFunction:
        """What the target limits; by the tables of the timed model for a time."""
        return self.timed.cost if self.timed else self.target.cost(self.lengths)
