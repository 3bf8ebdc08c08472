"""What a report says of one block."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockRow:
    """One block of a report.

    Attributes
    ----------
    name, kind, layer
        As in `Block`.
    kept, total : int
        Neurons or query heads.
    kept_groups, total_groups : int
        Key/value heads; equal to `kept` and `total` where nothing is shared.
    activation_error : float
        ``||A - A_J T||_F / ||A||_F`` of the consumer's input on the calibration set.
    output_error : float
        The same of the consumer's output.
    sensitivity : float or None
        Effect on the model's output for each unit of squared `output_error`, as probed.
    error_curve : list of [int, float], or None
        What every size would have cost: units kept and relative error of the consumer's output,
        before a second pass; of large blocks a selection of sizes. None where the method prices
        only what it takes.
    """

    name: str
    kind: str
    layer: int
    kept: int
    total: int
    kept_groups: int
    total_groups: int
    activation_error: float
    output_error: float
    sensitivity: float | None
    error_curve: list[list[float]] | None = None
