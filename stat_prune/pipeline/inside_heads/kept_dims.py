"""Fractions of the dimensions inside heads, asked for by themselves: ``{"query-key": 0.5}``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.budget.allocation import Menu, allocate
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.budget.whole_model import WholeModel
from stat_prune.choosing.head_dims import HeadDims
from stat_prune.errors import ModelError, TargetError
from stat_prune.families import attentions_of, find_blocks
from stat_prune.families.architecture import Attention
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import positions_per_sequence
from stat_prune.model.blocks import Block
from stat_prune.model.ignoring import without_ignored
from stat_prune.pipeline.inside_heads.dims_menus import (
    menu_of_dims,
    prices_of_dims,
    weight_of_half,
)
from stat_prune.pipeline.inside_heads.dims_search import FIRST
from stat_prune.pipeline.inside_heads.measured_dims import head_dims_of
from stat_prune.pipeline.inside_heads.narrowing_heads import (
    account_of,
    check_computed_in_one_place,
    dimensions_that_leave,
)
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.sources import Decided
from stat_prune.settings.targets import DIMENSIONS, QUERY_KEY, VALUE, MACs, Target
from stat_prune.surgery.narrowing import narrowed_copy

#: Of the probes' weights, as where the search of dimensions begins.
POWER = FIRST.power


@dataclass(frozen=True)
class Heads:
    """The heads of a layer, of which dimensions may leave.

    Attributes
    ----------
    block : Block
    attention : Attention
    left_alone : bool
        Whether the user wants them to stay as they are.
    """

    block: Block
    attention: Attention
    left_alone: bool

    def multiple(self, kind: str, round_to: int) -> int:
        """What numbers of dimensions are multiples of."""
        return math.lcm(round_to, self.attention.query_key_multiple if kind == QUERY_KEY else 1)


def check_kept_dims(run: Run, budgets: Sequence[Budget]) -> None:
    """Refuse fractions of dimensions that a model's heads have not, or that leave none.

    Raises
    ------
    ModelError, TargetError
    """
    for budget in budgets:
        asked = budget.target.of_dimensions
        if not asked:
            continue
        _check_family(run, budget)
        check_computed_in_one_place(run, repr(budget.target))
        heads = heads_of(run)
        if all(one.left_alone for one in heads):
            raise TargetError(
                f"{budget.target!r} has no heads to narrow: ignore={run.settings.ignored!r} leaves "
                "all of them alone. Leave one of the two out."
            )
        for kind in asked:
            prices = [
                prices_of_dims(
                    kind, one.block, one.multiple(kind, run.settings.round_to), budget.cost
                )[1][[-1 if one.left_alone else 0, -1]]
                for one in heads
            ]
            least, whole = torch.stack(prices).sum(0).tolist()
            _check_least(budget, kind, least, whole)


def _check_family(run: Run, budget: Budget) -> None:
    """Refuse models whose heads cannot lose dimensions of a kind that is asked for."""
    name = type(run.model).__name__
    offered = dimensions_that_leave(run.model)
    for kind in budget.target.of_dimensions:
        if kind not in offered:
            what = ", ".join(map(repr, ("heads", "neurons", *offered)))
            raise ModelError(
                f"{budget.target!r} is of dimensions inside heads, and {kind!r} dimensions cannot "
                f"leave {name}: its attention is none of those that docs/architectures.md lists "
                f"for them. Its fractions are of {what}."
            )


def _check_least(budget: Budget, kind: str, least: float, whole: float) -> None:
    fraction = budget.target.of_dimensions[kind]
    if least > fraction * whole * (1 + 1e-9):
        raise TargetError(
            f"{budget.target!r} keeps a fraction of {fraction:g} of the {kind!r} dimensions, and "
            f"{least / whole:.4g} is the least: heads keep one each, a pair where rotary "
            "embeddings turn them, or as many as round_to says. Ask for more, or lower round_to "
            "or shorten ignore."
        )


def heads_of(run: Run) -> list[Heads]:
    """The heads of all layers that have any, in order."""
    blocks = find_blocks(run.model)
    ignored = run.settings.ignored
    left_alone = {block.name for block in without_ignored(blocks, ignored)[1]}
    attentions = attentions_of(run.model)
    return [
        Heads(block, attentions[block.part], block.name in left_alone)
        for block in blocks
        if block.kind == "heads" and block.num_units
    ]


def spared_by_dims(run: Run, budget: Budget) -> tuple[float, int]:
    """MACs and parameters that fewer dimensions spare, if as large a part of each layer leaves.

    Of the heads that stay, if as large a part of each layer's leaves, too.
    """
    macs, parameters, target = 0.0, 0.0, budget.target
    counted = MACs(1.0).cost(budget.lengths)
    for kind, fraction in target.of_dimensions.items():
        gone = (1 - fraction) * target.fractions().get("heads", 1.0)
        for one in heads_of(run):
            macs += gone * float(prices_of_dims(kind, one.block, 1, counted)[1][-1])
            prices = prices_of_dims(kind, one.block, 1, Block.parameters)[1]
            parameters += gone * float(prices[-1])
    return macs, round(parameters)


class KeptDims:
    """Keeps fractions of the dimensions of what heads stay; targets have what they read in common.

    Parameters
    ----------
    run : Run
    targets : sequence of Target
    """

    def __init__(self, run: Run, targets: Sequence[Target]) -> None:
        self._run = run
        self._asked = {kind for target in targets for kind in target.of_dimensions}

    def narrowed(self, budget: Budget, decided: Decided) -> Decided:
        """All that was decided on, and the dimensions that leave the heads that stay.

        Of each kind the least sum of errors for what it may cost: of scores, about what keys have
        in common, and of what the output projection makes of values; those of each layer weighed
        by what a probe of it does to the model's output.

        Raises
        ------
        TargetError
            If the least that heads can have is more.
        """
        run, asked = self._run, budget.target.of_dimensions
        if not asked:
            return decided
        with run.stage("dimensions of heads"):
            units = {plan.folded.block.name: plan.folded.units for plan in decided.plans}
            stays = [
                (one, kept)
                for one in heads_of(run)
                if len(kept := units.get(one.block.name, torch.arange(one.block.num_units)))
            ]
            sizes = {
                VALUE: [one.block.unit_size for one, _ in stays],
                QUERY_KEY: [one.block.query_key_size for one, _ in stays],
            }
            reached = {}
            for kind, fraction in asked.items():
                menus = [self._menu(kind, one, kept, budget) for one, kept in stays]
                whole = sum(menu.full_cost for menu in menus)
                _check_least(budget, kind, sum(float(menu.costs[0]) for menu in menus), whole)
                sizes[kind] = allocate(menus, fraction)
                spent = sum(
                    float(menu.costs[menu.indices == size].sum())
                    for menu, size in zip(menus, sizes[kind], strict=True)
                )
                reached[kind] = spent / whole
            narrowed = [
                self._dims[one.block.name].narrowed(query_key, value, kept)
                for (one, kept), query_key, value in zip(
                    stays, sizes[QUERY_KEY], sizes[VALUE], strict=True
                )
                if not one.left_alone
            ]
        return replace(decided, narrowed=narrowed, head_dims=account_of(narrowed, kept=reached))

    def _menu(self, kind: str, heads: Heads, units: Tensor, budget: Budget) -> Menu:
        groups = len(heads.block.groups(units))
        block = replace(heads.block, num_units=len(units), num_groups=groups)
        if heads.left_alone:
            sizes, prices = prices_of_dims(kind, block, 1, budget.cost)
            whole = float(prices[-1])
            return Menu(sizes[-1:], prices[-1:], prices.new_zeros(1), whole)
        dims, multiple = self._dims[block.name], self._run.settings.round_to
        menu = menu_of_dims(kind, block, dims, units.cpu(), budget.cost, multiple)
        # What directions that leave had in common can make up for each other.
        errors = menu.errors.cummin(0).values
        return replace(menu, errors=self._weights[block.name, kind] ** POWER * errors)

    @cached_property
    def _weights(self) -> dict[tuple[str, str], Tensor]:
        """What half of the dimensions of a kind in one layer does, for each unit of its error."""
        dims = list(self._dims.values())
        run = replace(self._run, blocks=[one.block for one in dims])
        objective = objective_named(run.settings.objective)
        typical = run.calibration.batches[len(run.calibration.batches) // 2]
        whole = WholeModel(
            run.model,
            [one.block.layer for one in dims for _ in DIMENSIONS],
            self._cut,
            run.probe_batches(positions_per_sequence(run.model, typical, objective)),
            objective,
            parts=1,
        )
        dense = [n for one in dims for n in (one.block.query_key_size, one.block.unit_size)]
        everything = whole.measure(dense)
        weights = {}
        for number, one in enumerate(dims):
            curves = (one.query_key_errors, one.query_key_multiple), (one.value_errors, 1)
            for place, (kind, (curve, step)) in enumerate(zip(DIMENSIONS, curves, strict=True)):
                if kind in self._asked:
                    weights[one.block.name, kind] = weight_of_half(
                        whole, everything, 2 * number + place, curve.sum(0), step
                    )
        return weights

    def _cut(self, sizes: Sequence[int]) -> PreTrainedModel:
        pairs = zip(self._dims.values(), sizes[::2], sizes[1::2], strict=True)
        narrowed = [one.narrowed(query_key, value) for one, query_key, value in pairs]
        return narrowed_copy(self._run.model, [], narrowed)

    @cached_property
    def _dims(self) -> dict[str, HeadDims]:
        run = self._run
        blocks = [one.block for one in heads_of(run) if not one.left_alone]
        found = head_dims_of(
            run.model,
            blocks,
            run.tracked(run.calibration.batches),
            run.calibration.num_samples,
            run.settings.first_precision,
        )
        return {one.block.name: one for one in found}
