"""A search for the dimensions of each layer's heads, by what whole narrowed models do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.budget.allocation import Menu, allocate, allocate_evenly
from stat_prune.choosing.budget.costs import Budget, CostFunction, full_cost
from stat_prune.choosing.budget.exploring import Point, explore
from stat_prune.choosing.budget.whole_model import WholeModel
from stat_prune.choosing.head_dims import HeadDims
from stat_prune.choosing.rotary_pairs import rotary_of
from stat_prune.errors import TargetError
from stat_prune.families import find_blocks, stacks_of
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import positions_per_sequence
from stat_prune.model.blocks import Block
from stat_prune.model.running import Batch
from stat_prune.pipeline.budgeting.starts import (
    NUM_PARTS,
    effort_of,
    every_start,
    nearest,
    to_measure_on,
)
from stat_prune.pipeline.run import Run
from stat_prune.surgery.narrowing import NarrowedHeads, narrowed_copy

PARTS = ("query-key", "value")


class DimsSearch:
    """Spends what a model is too large by on dimensions inside its heads.

    Parameters
    ----------
    run : Run
    pruned : PreTrainedModel
        Too large for `budget`: heads and neurons have left.
    budget : Budget
        Of MACs or parameters of the dense model.
    """

    def __init__(self, run: Run, pruned: PreTrainedModel, budget: Budget) -> None:
        self._run, self._pruned = run, pruned
        names = {block.name for block in run.blocks}
        blocks = [
            block
            for block in find_blocks(pruned)
            if block.kind == "heads" and block.name in names and block.num_units
        ]
        self._dims = head_dims_of(
            pruned,
            blocks,
            run.tracked(run.calibration.batches),
            run.calibration.num_samples,
            run.settings.first_precision,
        )
        self._menus = list(self._priced(budget.cost))
        if not self._menus:
            raise TargetError(f"{budget.target!r} leaves no heads that dimensions could leave.")
        self._fraction = self._left_for_heads(budget) / sum(one.full_cost for one in self._menus)
        self._objective = objective_named(run.settings.objective)
        self._whole_choice = [len(one.indices) - 1 for one in self._menus]

    def search(self) -> list[NarrowedHeads]:
        """The dimensions with which the output is nearest to the dense model's.

        Raises
        ------
        TargetError
            If one dimension in every head is still too much.
        """
        run = self._run
        batch = run.calibration.batches[0]
        positions = positions_per_sequence(run.model, batch, self._objective)
        effort = effort_of(run.settings.effort, positions)
        starts = every_start(self._probed(positions))
        spreads = [(one, self._spread(one.weights, even=one.even)) for one in starts]
        count = effort.num_compared(run.calibration.num_samples)
        whole = self._measuring(run.model, count)
        best, found, _ = nearest(run.tracked(spreads), whole, errors=effort.errors_on(count))
        # In equal shares there are no weights to move.
        if run.calibration.held_out is not None and effort.rounds and not best.even:
            _, passes = effort.rounds[0]
            found = explore(
                Point(best.weights, found),
                self._spread,
                whole,
                layers=self._layers,
                parts=PARTS * len(self._dims),
                passes=passes * run.calibration.num_samples / whole.num_sequences,
                seed=run.settings.seed,
            ).point.measured
        return self._narrowed(found.choice)

    @property
    def _layers(self) -> list[int]:
        return [one.block.layer for one in self._dims for _ in PARTS]

    def _priced(self, cost: CostFunction) -> Iterator[Menu]:
        """For each layer, sizes of queries and keys, then of values."""
        for one in self._dims:
            block, multiple = one.block, self._run.settings.round_to
            for errors, kinds in ((one.query_key_errors, (1, 0)), (one.value_errors, (0, 1))):
                full, step = len(errors) - 1, multiple
                if kinds == (1, 0):
                    step = math.lcm(multiple, one.query_key_multiple)
                ranks = torch.tensor([n for n in range(1, full) if n % step == 0] + [full])
                costs = [
                    full_cost(block.with_dims(*(rank * kind for kind in kinds)), cost)
                    for rank in (0, *ranks.tolist())
                ]
                prices = torch.tensor(costs[1:], dtype=torch.float64) - costs[0]
                yield Menu(ranks, prices, errors[ranks], float(prices[-1]))

    def _left_for_heads(self, budget: Budget) -> float:
        """What the budget has left for the dimensions of all heads."""
        cost = budget.cost
        dense = [*self._run.blocks, *self._run.untouched]
        whole = budget.target.fractions()["all"] * sum(full_cost(one, cost) for one in dense)
        spent = sum(full_cost(one, cost) for one in find_blocks(self._pruned))
        return whole - spent + sum(one.full_cost for one in self._menus)

    def _spread(self, weights: Sequence[Tensor], *, even: bool = False) -> list[int]:
        menus = [
            replace(menu, indices=torch.arange(len(menu.indices)), errors=weight * menu.errors)
            for menu, weight in zip(self._menus, weights, strict=True)
        ]
        return (allocate_evenly if even else allocate)(menus, self._fraction)

    def _probed(self, positions: float) -> list[Tensor]:
        """What half of the dimensions of one kind in one layer do, for each unit of their error."""
        run = self._run
        whole = WholeModel(
            self._pruned,
            self._layers,
            self._cut,
            run.probe_batches(positions),
            self._objective,
            parts=1,
        )
        everything = whole.measure(self._whole_choice)
        weights = []
        for number, menu in enumerate(self._menus):
            choice = list(self._whole_choice)
            choice[number] //= 2
            found = whole.measure_beside(choice, everything, lambda *_: False)
            assert found is not None
            error = float(menu.errors[choice[number]])
            weights.append(torch.tensor(found.distance / max(error, 1e-300), dtype=torch.float64))
        return weights

    def _measuring(self, dense: PreTrainedModel, count: int) -> WholeModel:
        sequences = to_measure_on(self._run.calibration, count, self._run.settings.seed)
        return WholeModel(
            dense, self._layers, self._cut, sequences.batches, self._objective, parts=NUM_PARTS
        )

    def _cut(self, choice: Sequence[int]) -> PreTrainedModel:
        return narrowed_copy(self._pruned, self._narrowed(choice))

    def _narrowed(self, choice: Sequence[int]) -> list[NarrowedHeads]:
        sizes = [int(menu.indices[i]) for menu, i in zip(self._menus, choice, strict=True)]
        pairs = zip(sizes[::2], sizes[1::2], strict=True)
        return [one.narrowed(*pair) for one, pair in zip(self._dims, pairs, strict=True)]


def head_dims_of(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Iterable[Batch],
    num_sequences: int,
    precision: str = "float64",
) -> list[HeadDims]:
    """What the heads of a model read and make, in one pass over some batches."""
    reading = [
        replace(
            block,
            name=f"{block.name} reads",
            consumer=block.producers[0].path,
            num_units=block.input_size,
            unit_size=1,
        )
        for block in blocks
    ]
    moments = collect_moments(model, [*blocks, *reading], batches, precision=precision)
    base = model.base_model
    attentions = {one.name: one for stack, _ in stacks_of(model) for one in stack.attentions}
    found = []
    for block, reads in zip(blocks, reading, strict=True):
        attention, read = attentions[block.part], moments[reads.name]
        keeps_scores = attention.own_dims == "values"
        path = None if keeps_scores else attention.rotary
        found.append(
            HeadDims(
                base,
                block,
                read,
                moments[block.name],
                rotary=None if path is None else rotary_of(base, block, path),
                length=max(round(read.count / num_sequences), 1),
                keeps_scores=keeps_scores,
            )
        )
    return found
