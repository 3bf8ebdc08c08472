"""What the stages ask of a source: a model in memory, or a checkpoint on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

from transformers import PreTrainedModel

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.measured import Measured
from stat_prune.choosing.plan import BlockPlan
from stat_prune.model.blocks import Block
from stat_prune.model.factored_table import FactoredTable
from stat_prune.model.folded_consumer import InputCorrection
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.solving_again.second_pass import SecondPass
from stat_prune.pipeline.solving_again.solution import Solution
from stat_prune.reporting.block_row import BlockRow
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.search_report import ComparedShares, DimensionsOfHeads, Search
from stat_prune.surgery.narrowing import NarrowedHeads

Result = TypeVar("Result", covariant=True)


class Probed(NamedTuple):
    """What pruning a block alone does.

    Attributes
    ----------
    distance : float
        Of the model's output; of all experts of a set together.
    error : float
        The relative one of the block's own output.
    """

    distance: float
    error: float


class Searching(Protocol):
    """Spreads budgets by what whole pruned models do."""

    def choose(self, budget: Budget) -> tuple[list[int], Search]:
        """The candidate of each block for a budget, and how it was found."""


@dataclass(frozen=True)
class Decided:
    """All that is to become of a model, and how that was found.

    Attributes
    ----------
    sizes : sequence of (Block, int, int)
        Of each block the units and key/value heads that stay; with the bias that its consumer is
        given.
    plans : sequence of BlockPlan
        Where blocks are folded already, and not when they are cut.
    measured : sequence of Measured
    choice : sequence of int
        The candidate of each, where they are folded when they are cut.
    head : sequence of InputCorrection
        For layers behind the blocks.
    second_pass : SecondPass or None
    held_out : float or None
        How far the model is from the dense one on all that the calibration set holds out
        (`second_pass.with_held_out`), where a second pass has measured that.
    search : Search or None
    shares : ComparedShares or None
    narrowed : sequence of NarrowedHeads
    head_dims : DimensionsOfHeads or None
    """

    sizes: Sequence[tuple[Block, int, int]] = ()
    plans: Sequence[BlockPlan] = ()
    measured: Sequence[Measured] = ()
    choice: Sequence[int] = ()
    head: Sequence[InputCorrection] = ()
    second_pass: SecondPass | None = None
    held_out: float | None = None
    search: Search | None = None
    shares: ComparedShares | None = None
    narrowed: Sequence[NarrowedHeads] = ()
    head_dims: DimensionsOfHeads | None = None

    @classmethod
    def of(cls, plans: Sequence[BlockPlan]) -> Decided:
        """Of blocks that are folded."""
        return cls([_size_of(plan) for plan in plans], plans)

    @property
    def solution(self) -> Solution:
        """What is to become of the layers."""
        return Solution([plan.folded for plan in self.plans], self.head, self.narrowed)

    def with_solution(self, solution: Solution) -> Decided:
        """With the correction of a second pass."""
        pairs = zip(self.plans, solution.folded, strict=True)
        plans = [plan if plan.folded is one else replace(plan, folded=one) for plan, one in pairs]
        sizes = [_size_of(plan) for plan in plans]
        return replace(
            self, sizes=sizes, plans=plans, head=solution.head, narrowed=solution.narrowed
        )


def _size_of(plan: BlockPlan) -> tuple[Block, int, int]:
    block, units = plan.folded.block, plan.folded.units
    biased = block.consumer_bias or plan.folded.bias is not None
    return replace(block, consumer_bias=biased), len(units), len(block.groups(units))


@dataclass(frozen=True)
class CutModel:
    """A pruned model, not yet accounted for.

    Attributes
    ----------
    model : PreTrainedModel
        A source may hold back the values of weights.
    rows : list of BlockRow
        What is to be reported of each block that could be pruned.
    units : dict of str to list of int
        By block name, those that stay.
    embeddings, lm_head : FactoredTable or None
    """

    model: PreTrainedModel
    rows: list[BlockRow]
    units: dict[str, list[int]]
    embeddings: FactoredTable | None = None
    lm_head: FactoredTable | None = None


class Source(Protocol[Result]):
    """Where a model's weights and activations come from, and where the pruned ones go."""

    @property
    def run(self) -> Run:
        """The model, its blocks and the data."""

    @property
    def predicted_peak_memory(self) -> int | None:
        """Bytes, where that was promised before."""

    def measure(self) -> list[Measured]:
        """Statistics and sizes of each block."""

    def probe(self, measured: Sequence[Measured], choice: Sequence[int]) -> list[Probed]:
        """What each of some blocks does, pruned alone to a candidate."""

    def search(self, measured: Sequence[Measured]) -> Searching:
        """What compares whole pruned models."""

    def fold(self, measured: Sequence[Measured], choice: Sequence[int]) -> Decided:
        """The correction of each block's candidate; or a note to fold it when it is cut."""

    def solve_again(self, decided: Decided, budget: Budget) -> Decided:
        """The same with the correction solved on the pruned model, where that is wanted."""

    def cut(self, budget: Budget, decided: Decided) -> CutModel:
        """Smaller layers in place of the dense ones, in a copy or layer by layer."""

    def result(self, budget: Budget, cut: CutModel, report: PruningReport) -> Result:
        """What the caller gets."""
