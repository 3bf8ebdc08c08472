"""What the walk over the layers leaves to know of each block."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from stat_prune.choosing.criteria import Candidates
from stat_prune.model.blocks import Block
from stat_prune.pipeline.workspace import read, write


@dataclass(frozen=True)
class Measured:
    """What is kept in memory of a block.

    Attributes
    ----------
    candidates : Candidates
    output_energy : float
        As in `BlockStatistics`.
    probe_error : float or None
        Relative error of the block's output as it was probed; None where it was not.
    """

    candidates: Candidates
    output_energy: float
    probe_error: float | None


def write_measured(measured: Measured, folder: Path, number: int) -> None:
    """Leave it in the folder of its layer, under the number of its block."""
    candidates = measured.candidates
    fields = {f.name: getattr(candidates, f.name) for f in dataclasses.fields(candidates)}
    del fields["block"]
    values = {
        "candidates": fields,
        "output_energy": measured.output_energy,
        "probe_error": measured.probe_error,
    }
    write(values, folder / f"measured-{number}.pt")


def read_measured(block: Block, folder: Path, number: int) -> Measured:
    """What `write_measured` has left."""
    values = read(folder / f"measured-{number}.pt")
    return Measured(**{**values, "candidates": Candidates(block, **values["candidates"])})
