"""The probes: what pruning each block alone does to the model's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stat_prune.choosing.measured import Measured
from stat_prune.machine.distributed import barrier, gather, is_mine
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import positions_per_sequence, probe
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.running import Batch
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.sources import Probed, Source


def check_objective(run: Run) -> None:
    """Try the objective on the shortest sequences, before any work.

    Raises
    ------
    SettingsError
        If it needs what the model's output has not.
    """
    objective = objective_named(run.settings.objective)
    positions_per_sequence(run.model, run.calibration.batches[-1], objective)


def sensitivities(source: Source[Any], measured: Sequence[Measured]) -> list[Tensor] | None:
    """Effect on the model's output for each unit of a block's own squared error, by candidate.

    Each block is pruned alone to about half its size; what that does to the output is divided by
    the block's own error there. Where blocks may leave altogether each is removed alone too, as
    that can do 20 times what the half foretells: the larger of both counts.
    """
    if not source.run.settings.recipe.probes:
        return None

    def probed(some: Sequence[Measured], choice: Sequence[int]) -> list[float]:
        return weights_by_block(source.probe(some, choice), some)

    halved = probed(measured, [one.candidates.to_probe() for one in measured])
    weights = [
        torch.full((len(one.candidates.prefixes),), weight, dtype=torch.float64)
        for one, weight in zip(measured, halved, strict=True)
    ]
    removable = [n for n, one in enumerate(measured) if one.candidates.prefixes[0][1] == 0]
    if removable:
        removed = probed([measured[number] for number in removable], [0] * len(removable))
        for number, weight in zip(removable, removed, strict=True):
            weights[number][0] = max(float(weights[number][0]), weight)
    return weights


def distances(run: Run, probes: Sequence[FoldedConsumer], batches: Sequence[Batch]) -> list[float]:
    """What each probe does to the output of a model in memory."""
    # By layer: experts of a set are probed together.
    mine = [number for number, one in enumerate(probes) if is_mine(one.block.layer)]
    run.expect(len(batches) * len(mine))
    found = barrier(
        lambda: probe(
            run.model,
            [probes[number] for number in mine],
            batches,
            objective=objective_named(run.settings.objective),
            advance=run.advance,
        )
    )
    return gather(dict(zip(mine, found, strict=True)))


def weights_by_block(probes: Sequence[Probed], measured: Sequence[Measured]) -> list[float]:
    """Distance for each unit of relative squared error.

    Experts of a set were probed together, so their distance d is spread over them by the energies
    E_j of what each adds to the residual stream, e_j being their relative errors:

    ``w_i = d E_i / sum_j E_j e_j**2``, so that ``sum_i w_i e_i**2 = d``.

    Of a block alone that is ``d / e**2``.

    Parameters
    ----------
    probes : sequence of Probed
    measured : sequence of Measured
        Of the same blocks.
    """
    lost: dict[str, float] = {}
    energy: dict[str, float] = {}
    for probed, one in zip(probes, measured, strict=True):
        name, own = one.block.set_name, one.output_energy
        lost[name] = lost.get(name, 0.0) + probed.error**2 * own
        energy[name] = energy.get(name, 0.0) + own
    weights = []
    for probed, one in zip(probes, measured, strict=True):
        name, own = one.block.set_name, one.output_energy
        whole = max(energy[name], 1e-300)
        error = max(lost[name] / whole, 1e-30)
        weights.append(probed.distance / error * own / whole)
    return weights
