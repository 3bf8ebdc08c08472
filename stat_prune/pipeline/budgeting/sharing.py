"""One budget shared out between blocks and token embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from stat_prune.choosing.budget.choice import check_reachable
from stat_prune.choosing.budget.costs import Budget
from stat_prune.errors import TargetError
from stat_prune.machine.distributed import agreed
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import distance
from stat_prune.model.dispatched import own_parameters, shared_copy
from stat_prune.model.factored_table import FactoredTable
from stat_prune.pipeline.budgeting.searching import BudgetSearch
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.second_pass import with_held_out
from stat_prune.pipeline.sources import Decided
from stat_prune.settings.targets import Bytes, Parameters, Target
from stat_prune.surgery.cut import pruned_copy
from stat_prune.surgery.embeddings import Table, factor, find_table

#: Parts of the embeddings that are tried, from the largest on.
FRACTIONS = (1.0, 0.75, 0.5, 0.4, 0.33, 0.25, 0.15, 0.08)

#: So many in a row that are further from the dense model than the nearest end the trials: the less
#: of the embeddings, the more of the blocks, and the best lies between.
WORSE = 2


@dataclass(frozen=True, repr=False)
class Share(Parameters):
    """What blocks and embeddings keep each, for a target of both together.

    Attributes
    ----------
    asked : Target
    distances : dict of str to float
        By the fractions of embeddings and blocks that were compared, what both together do to the
        output.
    corrected : dict of str to float
        The same on held-out sequences, of those whose correction was solved on the model with
        factored embeddings.
    """

    asked: Target = field(default_factory=lambda: Parameters(1.0))
    distances: dict[str, float] = field(default_factory=dict)
    corrected: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return repr(self.asked)

    def __str__(self) -> str:
        return f"{self.of_embeddings:.3g} of the embeddings, {self.fraction:.3g} of the blocks"


def shares(run: Run, budget: Budget) -> list[Share]:
    """The ways to share out a joint budget that can be reached.

    Raises
    ------
    TargetError
        If there is none.
    """
    table, target = find_table(run.model), budget.target
    blocks = [*run.blocks, *run.untouched]
    in_blocks = sum(block.parameters(block.num_units, block.num_groups) for block in blocks)
    parameters = _parameters(run.model, target, in_blocks, table)
    # With the blocks whole, the embeddings alone give way.
    alone = (parameters - in_blocks) / table.parameters
    found = []
    for fraction in sorted({*FRACTIONS, *([alone] if 0 < alone < 1 else [])}, reverse=True):
        share = _share(run, budget, table, fraction, parameters, in_blocks)
        found += [] if share is None else [share]
    if not found:
        raise TargetError(
            f"{target!r} leaves {max(parameters, 0):,.0f} parameters for the blocks and the token "
            f"embeddings of {type(run.model).__name__}, of {in_blocks + table.parameters:,} now, "
            "which is less than the fewest heads and neurons take beside the smallest table that "
            "is tried. Ask for more."
        )
    return found


def best_share(
    run: Run,
    budget: Budget,
    search: BudgetSearch,
    fold: Callable[[Sequence[int], Target], Decided],
) -> Budget:
    """The way to share out a joint budget that changes the output least.

    Models with factored embeddings and pruned blocks are measured at the first start of the search
    for the blocks' budget. The correction then makes up for some of what the embeddings do, more
    where they are smaller: for the nearest and those beside it, it is solved, and they are compared
    on sequences that it was not solved on.
    """
    found = shares(run, budget)
    distances: list[float] = []
    choices: list[list[int]] = []
    with run.stage("share the budget"):
        for share in run.tracked(found):
            if agreed(lambda: len(distances) - 1 - _nearest(distances) >= WORSE):
                break
            search.cut_from(with_table(run, share))
            distance, choice = search.foreseen(replace(budget, target=share))
            distances.append(distance)
            choices.append(choice)
    nearest = agreed(lambda: _nearest(distances))
    corrected: dict[int, float] = {}
    for at in range(max(nearest - 1, 0), min(nearest + 2, len(distances))):
        decided = fold(choices[at], found[at])
        with run.stage("share the budget"):
            corrected[at] = _held_out_distance(run, found[at], decided)
    best = agreed(lambda: min(corrected, key=lambda at: corrected[at]))
    taken = replace(
        found[best],
        distances={str(one): far for one, far in zip(found, distances, strict=False)},
        corrected={str(found[at]): far for at, far in corrected.items()},
    )
    return replace(budget, target=taken)


def _nearest(distances: list[float]) -> int:
    """The number of the smallest; -1 of none."""
    return min(range(len(distances)), key=lambda at: distances[at], default=-1)


def _held_out_distance(run: Run, share: Share, decided: Decided) -> float:
    """Of a model that is cut so, on what the correction was not solved on."""
    _, judges = with_held_out(run.calibration, seed=run.settings.seed)
    cut = pruned_copy(with_table(run, share), [plan.folded for plan in decided.plans])
    return distance(run.model, cut, judges.batches, objective_named(run.settings.objective))


def with_table(run: Run, target: Target) -> PreTrainedModel:
    """The dense model, or a copy whose token embeddings are factored as a target says."""
    if target.of_embeddings == 1:
        return run.model
    copied = shared_copy(run.model)
    factor(copied, run.decomposed_table, target.of_embeddings, run.settings.round_to)
    return copied


def factor_embeddings(run: Run, target: Target, model: PreTrainedModel) -> FactoredTable | None:
    """Factor the token embeddings of a model, in place, as a target says; None where they stay."""
    if target.of_embeddings == 1:
        return None
    found = factor(model, run.decomposed_table, target.of_embeddings, run.settings.round_to)
    if found is None or not isinstance(target, Share):
        return found
    return replace(found, shares=target.distances, corrected=target.corrected)


def _parameters(model: PreTrainedModel, target: Target, in_blocks: int, table: Table) -> float:
    """Parameters for blocks and table together."""
    fraction = target.fractions()["all"]
    if not isinstance(target, Bytes):
        return fraction * (in_blocks + table.parameters)
    # Others may be of another dtype; these are of the model's.
    size = model.dtype.itemsize
    whole = sum(one.numel() * one.element_size() for one in own_parameters(model))
    return (fraction * whole - (whole - size * (in_blocks + table.parameters))) / size


def _share(
    run: Run, joint: Budget, table: Table, fraction: float, parameters: float, in_blocks: int
) -> Share | None:
    """What is left for blocks beside so much of the embeddings; None where it is too little."""
    try:
        rank = table.rank_for(fraction, run.settings.round_to)
        spent = table.parameters if rank is None else table.cost(rank)
        left = (parameters - spent) / in_blocks
        if left <= 0:
            return None
        share = Share(min(left, 1.0), embeddings=float(fraction), asked=joint.target)
        check_reachable(
            run.blocks,
            run.untouched,
            replace(joint, target=share),
            round_to=run.settings.round_to,
            remove=run.settings.removes_blocks,
        )
    except TargetError:
        return None
    return share
