"""One search over heads, neurons and dimensions inside heads, by what whole models do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.budget.allocation import Menu, allocate
from stat_prune.choosing.budget.bisection import TOLERANCE
from stat_prune.choosing.budget.costs import Budget, CostFunction, full_cost
from stat_prune.choosing.budget.exploring import in_vain
from stat_prune.choosing.budget.whole_model import Measurement, WholeModel
from stat_prune.choosing.head_dims import HeadDims
from stat_prune.choosing.measured import Measured
from stat_prune.data.calibration import CalibrationSet
from stat_prune.errors import TargetError
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.timing import TimedModel, multiples_of_dims
from stat_prune.model.blocks import Block
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.pipeline.budgeting.efforts import NUM_PARTS
from stat_prune.pipeline.budgeting.searching import BudgetSearch
from stat_prune.pipeline.budgeting.spreading import spread
from stat_prune.pipeline.inside_heads.dims_menus import (
    menu_of_dims,
    multiples_up_to,
    weight_of_half,
)
from stat_prune.pipeline.inside_heads.measured_dims import head_dims_of
from stat_prune.pipeline.run import Run
from stat_prune.settings.targets import QUERY_KEY, VALUE
from stat_prune.surgery.narrowing import NarrowedHeads, narrowed_copy


class Point(NamedTuple):
    """What decides how a budget is spread, beside the weights of heads and neurons.

    Attributes
    ----------
    share : float
        Of what heads and neurons leave of a model, what dimensions do.
    query_key : float
        What the weights of query/key dimensions are multiplied with. Probes leave half of the
        dimensions of one layer; what an error of the scores does is bounded by softmax.
    power : float
        Of the probes' weights.
    """

    share: float
    query_key: float
    power: float


#: Most spreads that are timed for one speed-up.
MOST_TIMED = 6

#: Where the search begins, and what it tries, one coordinate after another.
FIRST = Point(0.85, 0.25, 0.5)
COORDINATES: dict[str, tuple[float, ...]] = {
    "share": (0.95, 0.9, 0.8, 0.7, 0.6),
    "query_key": (1.0, 0.06, 0.015),
    "power": (1.0, 0.75, 0.25, 0.0),
}

#: Coordinates in the order in which they are moved, by effort.
MOVES = {
    "fast": ("share", "query_key"),
    "normal": ("share", "query_key", "power", "share"),
    "thorough": ("share", "query_key", "power", "share", "query_key", "power"),
}


class Spread(NamedTuple):
    """A budget spread over heads, neurons and dimensions inside heads.

    Attributes
    ----------
    fraction : float
        What heads and neurons leave, before dimensions do.
    choice : list of int
        The candidate of each block.
    narrowed : list of NarrowedHeads
        The layers whose heads are narrower.
    evaluations : int
        Spreads that were measured, at least in part.
    passes : float
        What was computed for it, in forward passes over the calibration set: what was not known
        from a budget before.
    """

    fraction: float
    choice: list[int]
    narrowed: list[NarrowedHeads]
    evaluations: int = 0
    passes: float = 0.0


class DimsSearch:
    """Spends budgets on dimensions inside heads beside heads and neurons.

    What targets have in common is computed once.

    Parameters
    ----------
    run : Run
    measured : sequence of Measured
    blocks : BudgetSearch
        Over heads and neurons alone.
    """

    def __init__(self, run: Run, measured: Sequence[Measured], blocks: BudgetSearch) -> None:
        self._run, self._measured, self._blocks = run, measured, blocks
        self._candidates = [one.candidates for one in measured]
        self._objective = objective_named(run.settings.objective)
        self._heads = [n for n, block in enumerate(run.blocks) if block.kind == "heads"]
        self._passes = 0.0

    def search(self, budget: Budget) -> Spread | None:
        """The nearest spread to the dense model's output.

        Heads and neurons are spread by the weights that were found for them alone; few numbers
        decide the rest, as what many do to a few sequences says little of others.

        Returns
        -------
        Spread or None
            None where no start leaves heads as much as one dimension in each costs.
        """
        run, spent = self._run, self._passes
        whole = WholeModel(
            run.model,
            self._layers,
            partial(self._cut, self._blocks.cut_from),
            self._sequences.batches,
            self._objective,
            parts=NUM_PARTS,
        )
        best, known, evaluations = FIRST, dict[tuple[int, ...], Measurement](), 0
        for name in MOVES[run.settings.effort]:
            points = [best, *(best._replace(**{name: value}) for value in COORDINATES[name])]
            found: Measurement | None = None
            for point in run.tracked(points):
                try:
                    choice = tuple(self._choice(point, budget))
                except TargetError:
                    continue  # too little is left for heads
                if choice not in known:
                    evaluations += 1
                    measured = (
                        whole.measure(choice)
                        if found is None
                        else whole.measure_beside(choice, found, in_vain)
                    )
                    if measured is None:
                        continue
                    known[choice] = measured
                if found is None or known[choice].distance < found.distance:
                    best, found = point, known[choice]
            if found is None:
                return None
        self._count(whole)
        taken = self._taken(best, budget)
        if taken is None:
            return None
        return taken._replace(evaluations=evaluations, passes=self._passes - spent)

    def _taken(self, point: Point, budget: Budget) -> Spread | None:
        """The spread at a point; of a time, None where none is as fast as was asked for."""
        if budget.timed is not None:
            return self._in_time(point, budget, budget.timed)
        blocks, dims, fraction = self._shared(point, budget)
        return Spread(fraction, blocks, self._narrowed(blocks, dims))

    def _count(self, whole: WholeModel) -> None:
        """Note what was computed on some sequences."""
        self._passes += whole.passes * whole.num_sequences / self._run.calibration.num_samples

    @property
    def _sequences(self) -> CalibrationSet:
        """What spreads are compared on."""
        return self._blocks.trials.sequences(1 if self._run.settings.effort == "fast" else 2)

    @cached_property
    def _dims(self) -> list[HeadDims]:
        run = self._run
        self._passes += 1
        return head_dims_of(
            run.model,
            [run.blocks[number] for number in self._heads],
            run.tracked(run.calibration.batches),
            run.calibration.num_samples,
            run.settings.first_precision,
        )

    @property
    def _layers(self) -> list[int]:
        """Of all blocks, and of the two kinds of dimensions of each block of heads."""
        blocks = self._run.blocks
        dims = [blocks[number].layer for number in self._heads for _ in range(2)]
        return [*(block.layer for block in blocks), *dims]

    def _choice(self, point: Point, budget: Budget) -> list[int]:
        """The candidate of each block, and the sizes of each block of heads."""
        choice, dims, _ = self._shared(point, budget)
        return [*choice, *dims]

    def _in_time(self, best: Point, budget: Budget, timed: TimedModel) -> Spread | None:
        """The spread as fast as was asked for, timed as a whole; None where none is.

        Tables are of layers alone, and of heads that are all there; so what dimensions are to take
        of the time is corrected by what the whole model takes.
        """
        asked = budget.fraction
        total = self._full_cost(timed.cost)
        share, found = self._blocks.time_share(budget), None
        with self._run.stage("allocate and time"):
            for _ in range(MOST_TIMED):
                try:
                    blocks, dims, fraction = self._shared_time(best, budget, timed, share)
                except TargetError:
                    return found
                narrowed = self._narrowed(blocks, dims)
                folded = self._folded(blocks)
                cut = narrowed_copy(self._run.model, folded, narrowed)
                comparison = timed.compare_model(cut)
                excess = 1 / comparison.speed_up - asked
                if excess <= TOLERANCE * asked:
                    found = Spread(fraction, blocks, narrowed)
                if abs(excess) <= TOLERANCE * asked:
                    break
                share -= excess * comparison.dense_seconds / total
        return found

    def _full_cost(self, cost: CostFunction) -> float:
        return sum(full_cost(one, cost) for one in (*self._run.blocks, *self._run.untouched))

    def _shared_time(
        self, point: Point, budget: Budget, timed: TimedModel, share: float
    ) -> tuple[list[int], list[int], float]:
        """As `_shared`, by a share of the time that the tables have for all blocks."""
        start = self._blocks.taken(budget)
        wide = min(share / point.share, 1.0)
        choice = spread(
            self._run, self._measured, start.weights, budget, even=start.even, share=wide
        )
        weights = self._weights_at(point)
        left = share * self._full_cost(timed.cost)
        stays = self._stays(choice)
        left -= sum(full_cost(one, timed.cost) for one in (*stays, *self._run.untouched))
        menus, sizes = [], []
        pairs = zip(weights[::2], weights[1::2], strict=True)
        for number, one, (query_key, value) in zip(self._heads, self._dims, pairs, strict=True):
            block, units = stays[number], self._candidates[number].units(choice[number])
            multiples = multiples_of_dims(self._run.model, one.block, self._run.settings.round_to)
            first, second = (
                multiples_up_to(full, multiple)
                for full, multiple in zip(
                    (one.block.query_key_size, one.block.unit_size), multiples, strict=True
                )
            )
            saved = timed.seconds_saved(one.block, block.num_units, first, second).reshape(-1)
            errors = (
                query_key * one.query_key_errors[units].sum(0)[first][:, None]
                + value * one.value_errors[units].sum(0)[second]
            ).reshape(-1)
            costs = saved.max() - saved
            menus.append(Menu(torch.arange(len(costs)), costs, errors, float(costs[-1])))
            sizes.append([(a, b) for a in first for b in second])
        total = sum(one.full_cost for one in menus)
        if not total or left + total < 0:
            raise TargetError(f"{budget.target!r} is out of reach of dimensions inside heads.")
        chosen = allocate([_ascending(menu) for menu in menus], (left + total) / total)
        dims = [n for pairs, index in zip(sizes, chosen, strict=True) for n in pairs[index]]
        return choice, dims, budget.fraction / point.share

    def _shared(self, point: Point, budget: Budget) -> tuple[list[int], list[int], float]:
        """Both apart, and what heads and neurons leave before dimensions do."""
        if budget.timed is not None:
            share = self._blocks.time_share(budget)
            return self._shared_time(point, budget, budget.timed, share)
        kept, start = budget.fraction, self._blocks.taken(budget)
        fraction = min(kept / point.share, 1.0)
        wide = budget.with_fraction(fraction)
        choice = spread(self._run, self._measured, start.weights, wide, even=start.even)
        dims = self._weights_at(point)
        cost = budget.cost
        stays = self._stays(choice)
        every = [*self._run.blocks, *self._run.untouched]
        left = kept * sum(full_cost(one, cost) for one in every)
        left -= sum(full_cost(one, cost) for one in (*stays, *self._run.untouched))
        menus = [
            replace(menu, errors=weight * menu.errors)
            for menu, weight in zip(self._menus(stays, choice, budget), dims, strict=True)
        ]
        total = sum(one.full_cost for one in menus)
        if not total:
            raise TargetError(f"{budget.target!r} leaves no heads that dimensions could leave.")
        sizes = allocate(menus, (left + total) / total)
        return choice, sizes, fraction

    def _weights_at(self, point: Point) -> list[Tensor]:
        dims = [one**point.power for one in self._probed]
        dims[::2] = [one * point.query_key for one in dims[::2]]
        return dims

    def _stays(self, choice: Sequence[int]) -> list[Block]:
        """The blocks with what a choice leaves of them."""
        stays = []
        for candidates, index in zip(self._candidates, choice, strict=True):
            block, num_units, num_groups = candidates.size(index)
            stays.append(replace(block, num_units=num_units, num_groups=num_groups))
        return stays

    def _menus(
        self, stays: Sequence[Block], choice: Sequence[int], budget: Budget
    ) -> Iterator[Menu]:
        """For each block of heads, sizes of queries and keys, then of values."""
        multiple, cost = self._run.settings.round_to, budget.cost
        for number, one in zip(self._heads, self._dims, strict=True):
            block = stays[number]
            units = self._candidates[number].units(choice[number])
            yield menu_of_dims(QUERY_KEY, block, one, units, cost, multiple)
            yield menu_of_dims(VALUE, block, one, units, cost, multiple)

    @cached_property
    def _probed(self) -> list[Tensor]:
        """What half of the dimensions of one kind in one layer do, for each unit of their error."""
        run = self._run
        whole = WholeModel(
            run.model,
            self._layers,
            partial(self._cut, run.model),
            run.probe_batches(self._blocks.trials.positions_per_sequence),
            self._objective,
            parts=1,
        )
        dense = [
            *(int(one.num_units.argmax()) for one in self._candidates),
            *(n for one in self._dims for n in (one.block.query_key_size, one.block.unit_size)),
        ]
        everything = whole.measure(dense)
        weights = []
        for number in range(2 * len(self._dims)):
            one = self._dims[number // 2]
            curve = (one.value_errors if number % 2 else one.query_key_errors).sum(0)
            step = 1 if number % 2 else one.query_key_multiple
            place = len(self._candidates) + number
            weights.append(weight_of_half(whole, everything, place, curve, step))
        self._count(whole)
        return weights

    def _cut(self, model: PreTrainedModel, choice: Sequence[int]) -> PreTrainedModel:
        count = len(self._candidates)
        narrowed = self._narrowed(choice[:count], choice[count:])
        return narrowed_copy(model, self._folded(choice[:count]), narrowed)

    def _folded(self, choice: Sequence[int]) -> list[FoldedConsumer]:
        return [self._blocks.folded(*one) for one in enumerate(choice)]

    def _narrowed(self, choice: Sequence[int], dims: Sequence[int]) -> list[NarrowedHeads]:
        found = []
        for number, one, query_key, value in zip(
            self._heads, self._dims, dims[::2], dims[1::2], strict=True
        ):
            units = self._candidates[number].units(choice[number])
            if len(units):
                found.append(one.narrowed(query_key, value, units))
        return found


def _ascending(menu: Menu) -> Menu:
    order = menu.costs.argsort(stable=True)
    return replace(
        menu, indices=menu.indices[order], costs=menu.costs[order], errors=menu.errors[order]
    )
