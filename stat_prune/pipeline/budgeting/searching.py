"""The stage that spreads a budget by what whole pruned models do to the output."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.budget.choice import share_of
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.budget.exploring import Point, explore
from stat_prune.choosing.budget.whole_model import WholeModel
from stat_prune.choosing.factored_block import FactoredBlock, is_factored
from stat_prune.choosing.folding import fold_one, in_float32
from stat_prune.choosing.measured import Measured, weights_of
from stat_prune.data.calibration import CalibrationSet
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.timing import TimedModel
from stat_prune.model.blocks import Block
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.pipeline.budgeting.efforts import NUM_PARTS, Trials
from stat_prune.pipeline.budgeting.spreading import spread
from stat_prune.pipeline.budgeting.starts import (
    Start,
    nearest,
    spread_starts,
    starts_of,
)
from stat_prune.pipeline.run import Run
from stat_prune.reporting.search_report import Search, SearchRound
from stat_prune.settings.methods import Method
from stat_prune.surgery.cut import pruned_copy

#: Sizes of a block that a search looks at.
LEVELS = 64


class BudgetSearch:
    """Spreads budgets over the blocks of a run; what targets have in common is computed once.

    Parameters
    ----------
    run : Run
    measured : sequence of Measured
        With statistics and weights.
    trials : Trials

    Attributes
    ----------
    cut_from : PreTrainedModel
        What whole pruned models are cut from: the dense model, but for its embeddings.
    """

    def __init__(self, run: Run, measured: Sequence[Measured], trials: Trials) -> None:
        self._run, self._measured, self.trials = run, measured, trials
        self.cut_from = run.model
        self._weights = weights_of(measured)
        self._objective = objective_named(run.settings.objective)
        self.folded = _Folded(run.settings.recipe, measured)
        self._wholes: dict[str, WholeModel] = {}
        self._taken: dict[str, Start] = {}
        self._time_shares: dict[str, float] = {}

    def choose(self, budget: Budget) -> tuple[list[int], Search]:
        """The candidate of each block for a budget, and how it was found."""
        run = self._run
        spent = self._passes
        with (
            run.stage("search the budget"),
            gathered_numerical_warnings("folding candidates in the search"),
        ):
            share = self._share(budget)
            starts = starts_of(self._weights, run.settings)
            whole = self._on_calibration(1)
            best, distances = self._nearest(whole, starts, budget, share, errors=self.trials.errors)
            start, contenders, rounds = best.name, [best], []
            # In equal shares there are no weights to move.
            weighed = starts[0] if best.even else best
            for number in range(len(self.trials.rounds)):
                weighed, found = self._round(number, weighed, budget, share)
                rounds.append(found)
                contenders += [weighed] if found.accepted else []
            held_out: dict[str, float] = {}
            if len(contenders) > 1:
                best, held_out = self._nearest(self._on_held_out(), contenders, budget, share)
            choice = spread(run, self._measured, best.weights, budget, even=best.even)
            self._taken[repr(budget.target)] = best
            if budget.timed is not None:
                self._time_shares[repr(budget.target)] = self._share_of(choice, budget.timed)
        return choice, Search(
            effort=run.settings.effort,
            sequences=whole.num_sequences,
            starts=distances,
            rounds=rounds,
            held_out=held_out,
            held_out_sequences=self._on_held_out().num_sequences if held_out else 0,
            taken=best.name,
            passes=self._passes - spent,
            start=start,
            given_up=[one.name for one in starts if one.name not in distances],
        )

    def taken(self, budget: Budget) -> Start:
        """The weights that a budget is spread by; searched for where they are not known yet."""
        name = repr(budget.target)
        if name not in self._taken:
            self.choose(budget)
        return self._taken[name]

    def time_share(self, budget: Budget) -> float:
        """Of a time, what the choice that was taken has of it by the tables."""
        self.taken(budget)
        return self._time_shares[repr(budget.target)]

    def foreseen(self, budget: Budget) -> tuple[float, list[int]]:
        """The first start for a budget: its distance, on the sequences that all are compared on."""
        start = starts_of(self._weights, self._run.settings)[0]
        choice = spread(self._run, self._measured, start.weights, budget, levels=LEVELS)
        with gathered_numerical_warnings("folding candidates in the search"):
            return self._on_calibration(1).measure(choice).distance, choice

    def _nearest(
        self,
        whole: WholeModel,
        starts: Sequence[Start],
        budget: Budget,
        share: float | None,
        *,
        errors: float = 0.0,
    ) -> tuple[Start, dict[str, float]]:
        spreads = spread_starts(self._run, self._measured, starts, budget, share)
        return nearest(self._run.tracked(spreads), whole, errors=errors)

    def _round(
        self, number: int, start: Start, budget: Budget, share: float | None
    ) -> tuple[Start, SearchRound]:
        """Search on from a start, on more sequences than the round before."""
        run, (times, passes) = self._run, self.trials.rounds[number]
        whole = self._on_calibration(times)

        def near(weights: Sequence[Tensor]) -> list[int]:
            return spread(run, self._measured, weights, budget, share=share, levels=LEVELS)

        def advance() -> None:
            run.expect(1)
            run.advance()

        begun = whole.measure(near(start.weights))
        found = explore(
            Point(start.weights, begun),
            near,
            whole,
            layers=[block.layer for block in run.blocks],
            parts=[block.part for block in run.blocks],
            passes=passes * run.calibration.num_samples / whole.num_sequences,
            seed=run.settings.seed + number,
            advance=advance,
        )
        report = SearchRound(
            sequences=whole.num_sequences,
            evaluations=found.evaluations,
            accepted=found.accepted,
            before=begun.distance,
            after=found.point.measured.distance,
        )
        return Start(report.name, found.point.weights), report

    def _share(self, budget: Budget) -> float | None:
        """Of a time, what all choices are to take by the tables: as much as one that is timed."""
        if budget.timed is None:
            return None
        choice = spread(self._run, self._measured, self._weights, budget)
        return self._share_of(choice, budget.timed)

    def _share_of(self, choice: Sequence[int], timed: TimedModel) -> float:
        return share_of(
            [one.candidates for one in self._measured], choice, self._run.untouched, timed
        )

    def _on_calibration(self, times: int) -> WholeModel:
        """So many times the calibration sequences that starts are compared on."""
        return self._whole(f"calibration x {times}", lambda: self.trials.sequences(times))

    def _on_held_out(self) -> WholeModel:
        """Where nothing is given up: the last word is that of all sequences, which are few."""
        return self._whole("held out", self.trials.held_out, parts=1)

    def forget(self) -> None:
        """Give up what is remembered of whole models, which know the search and it them."""
        self._wholes.clear()

    def _whole(
        self, name: str, sequences: Callable[[], CalibrationSet], *, parts: int = NUM_PARTS
    ) -> WholeModel:
        if name not in self._wholes:
            self._wholes[name] = WholeModel(
                self._run.model,
                [block.layer for block in self._run.blocks],
                self._cut,
                sequences().batches,
                self._objective,
                parts=parts,
            )
        return self._wholes[name]

    def _cut(self, choice: Sequence[int]) -> PreTrainedModel:
        return pruned_copy(self.cut_from, [self.folded(*one) for one in enumerate(choice)])

    @property
    def _passes(self) -> float:
        """Forward passes over the calibration set so far."""
        computed = sum(one.passes * one.num_sequences for one in self._wholes.values())
        return computed / self._run.calibration.num_samples


class _Folded:
    """Folded candidates, those of the last few choices remembered.

    Choices come back to sizes that they had before: of 1,272 candidates of a MiniLM 246 are not the
    same.
    """

    def __init__(self, recipe: Method, measured: Sequence[Measured]) -> None:
        self._recipe, self._measured = recipe, measured
        self._free = num_remembered([one.block for one in measured])
        self._known: OrderedDict[tuple[int, int], FoldedConsumer] = OrderedDict()
        self._factored: dict[int, FactoredBlock] = {}

    def __call__(self, number: int, index: int) -> FoldedConsumer:
        key = number, index
        if key not in self._known:
            self._known[key] = self._fold(number, index)
            self._free -= self._known[key].weight.numel()
        self._known.move_to_end(key)
        while self._free < 0 and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._free += oldest.weight.numel()
        return self._known[key]

    def _fold(self, number: int, index: int) -> FoldedConsumer:
        one = self._measured[number]
        folded = None
        if is_factored(one.block, self._recipe):
            if number not in self._factored:
                assert one.statistics is not None
                self._factored[number] = FactoredBlock(one.statistics, one.candidates)
            folded = self._factored[number].fold(index)
        return folded or in_float32(fold_one(self._recipe, one, index))


def num_remembered(blocks: Sequence[Block]) -> int:
    """Numbers in float32 that folded candidates may be remembered in: two of each block."""
    return 2 * sum(block.output_size * block.num_channels for block in blocks)
