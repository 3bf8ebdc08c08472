"""What may be spent, and what a candidate costs: multiply-accumulates, parameters or time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
class Share:
    """What is kept of each where one budget is of blocks, token embeddings and head together.

    Attributes
    ----------
    blocks : float
        Of what the target limits.
    embeddings, lm_head : float or None
        Of their parameters; None of what has no part in the budget.
    """

    blocks: float
    embeddings: float | None = None
    lm_head: float | None = None

    @property
    def of_embeddings(self) -> float:
        """Kept fraction of the parameters of the token embeddings."""
        return 1.0 if self.embeddings is None else self.embeddings

    @property
    def of_head(self) -> float:
        """Kept fraction of the parameters of a language model's head with weights of its own."""
        return 1.0 if self.lm_head is None else self.lm_head

    def __str__(self) -> str:
        head = "" if self.lm_head is None else f"{self.lm_head:.3g} of the head, "
        table = "" if self.embeddings is None else f"{self.embeddings:.3g} of the embeddings, "
        return f"{table}{head}{self.blocks:.3g} of the blocks"


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
    share : Share or None
        How what a joint target counts together shares the budget, once that is known. None where
        the fractions are those of the target.
    """

    target: Target
    lengths: Mapping[str, float]
    main_mask: str
    timed: TimedModel | None = None
    share: Share | None = None

    @property
    def seq_length(self) -> float:
        """Tokens a sequence, of those that are read first."""
        return self.lengths[self.main_mask]

    @property
    def cost(self) -> CostFunction:
        """What the target limits; by the tables of the timed model for a time."""
        return self.timed.cost if self.timed else self.target.cost(self.lengths)

    @property
    def fraction(self) -> float:
        """What is kept of all blocks together, where no kind has a fraction of its own."""
        return self.fractions()["all"]

    def fractions(self) -> dict[str, float]:
        """Kept fraction by kind of block, or ``{"all": fraction}``."""
        return self.target.fractions() if self.share is None else {"all": self.share.blocks}

    def fractions_of(self, blocks: list[Block]) -> list[tuple[list[Block], float]]:
        """Which blocks share which fraction; blocks that are in no pair are kept whole."""
        if self.share is None:
            return self.target.budgets(blocks)
        return [(blocks, self.share.blocks)]

    @property
    def of_embeddings(self) -> float:
        """Kept fraction of the parameters of the token embeddings."""
        return (self.share or self.target).of_embeddings

    @property
    def of_head(self) -> float:
        """Kept fraction of the parameters of a language model's head with weights of its own."""
        return (self.share or self.target).of_head

    @property
    def factors(self) -> bool:
        """Whether token embeddings or a head become two factors."""
        return self.of_embeddings < 1 or self.of_head < 1

    def with_fraction(self, fraction: float) -> Budget:
        """Another fraction of all blocks together, beside the same embeddings and head."""
        return replace(self, share=Share(fraction, self.of_embeddings, self.of_head))
