"""The probes: what pruning each block alone does to the model's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stat_prune.choosing.criteria import Candidates
from stat_prune.choosing.folding import fold_all
from stat_prune.machine.distributed import is_mine, merged, together
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import positions_per_sequence, probe
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.running import Batch, Objective
from stat_prune.pipeline.run import Run
from stat_prune.settings.methods import Method


def check_objective(run: Run) -> None:
    """Try the objective on the shortest sequences, before any work.

    Raises
    ------
    SettingsError
        If it needs what the model's output has not.
    """
    objective = objective_named(run.settings.objective)
    positions_per_sequence(run.model, run.calibration.batches[-1], objective)


def sensitivities(
    run: Run,
    recipe: Method,
    statistics: Sequence[BlockStatistics],
    candidates: Sequence[Candidates],
) -> list[Tensor] | None:
    """Effect on the model's output for each unit of a block's own squared error, by candidate.

    Each block is pruned alone to about half its size; what that does to the output is divided by
    the block's own error there. Where blocks may leave altogether each is removed alone too, as
    that can do 20 times what the half foretells: the larger of both counts.
    """
    if not recipe.probes:
        return None
    with run.stage("probe"):
        objective = objective_named(run.settings.objective)
        typical = run.calibration.batches[len(run.calibration.batches) // 2]
        batches = run.probe_batches(positions_per_sequence(run.model, typical, objective))

        def probed(numbers: Sequence[int], choice: Sequence[int]) -> list[float]:
            some = [statistics[number] for number in numbers]
            folded = fold_all(
                recipe, some, [candidates[number] for number in numbers], choice, "the probes"
            )
            return weights_by_block(
                _distances(run, folded, batches, objective),
                [one.output_error for one in folded],
                [one.output_energy for one in some],
                [one.block.set_name for one in some],
            )

        every = range(len(candidates))
        halved = probed(every, [one.to_probe() for one in candidates])
        weights = of_all_candidates(candidates, halved)
        removable = [number for number in every if candidates[number].prefixes[0][1] == 0]
        if removable:
            removed = probed(removable, [0] * len(removable))
            for number, weight in zip(removable, removed, strict=True):
                weights[number][0] = max(float(weights[number][0]), weight)
    return weights


def _distances(
    run: Run, probes: Sequence[FoldedConsumer], batches: Sequence[Batch], objective: Objective
) -> list[float]:
    """What each probe does to the model's output."""
    # By layer: experts of a set are probed together.
    mine = [number for number, one in enumerate(probes) if is_mine(one.block.layer)]
    run.expect(len(batches) * len(mine))
    found = together(
        lambda: probe(
            run.model,
            [probes[number] for number in mine],
            batches,
            objective=objective,
            advance=run.advance,
        )
    )
    return merged(dict(zip(mine, found, strict=True)))


def of_all_candidates(candidates: Sequence[Candidates], weights: Sequence[float]) -> list[Tensor]:
    """The weight of each block, for every candidate of it."""
    return [
        torch.full((len(one.prefixes),), weight, dtype=torch.float64)
        for one, weight in zip(candidates, weights, strict=True)
    ]


def weights_by_block(
    distances: Sequence[float],
    errors: Sequence[float],
    energies: Sequence[float],
    sets: Sequence[str],
) -> list[float]:
    """Distance for each unit of relative squared error.

    Experts of a set were probed together, so their distance d is spread over them by the energies
    E_j of what each adds to the residual stream, e_j being their relative errors:

    ``w_i = d E_i / sum_j E_j e_j**2``, so that ``sum_i w_i e_i**2 = d``.

    Of a block alone that is ``d / e**2``.

    Parameters
    ----------
    distances, errors : sequence of float
        Of the model's output, and the relative one of the block's own, for each probe.
    energies : sequence of float
        Squared norms of the blocks' outputs.
    sets : sequence of str
        Names of what was probed together.
    """
    lost: dict[str, float] = {}
    energy: dict[str, float] = {}
    for error, own, name in zip(errors, energies, sets, strict=True):
        lost[name] = lost.get(name, 0.0) + error**2 * own
        energy[name] = energy.get(name, 0.0) + own
    weights = []
    for distance, own, name in zip(distances, energies, sets, strict=True):
        whole = max(energy[name], 1e-300)
        error = max(lost[name] / whole, 1e-30)
        weights.append(distance / error * own / whole)
    return weights
