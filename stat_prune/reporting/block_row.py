"""What a report says of one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stat_prune.model.blocks import Block  # reports are shown without waiting for torch


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
    activation_error : float or None
        ``||A - A_J T||_F / ||A||_F`` of the consumer's input on the calibration set; None where
        that was not measured.
    output_error : float or None
        The same of the consumer's output. None where queries and keys have lost dimensions: what
        other scores do to it was not measured.
    sensitivity : float or None
        Effect on the model's output for each unit of squared `output_error`, as probed.
    error_curve : list of [int, float], or None
        What every size would have cost: units kept and relative error of the consumer's output,
        before a second pass; of large blocks a selection of sizes. None where the method prices
        only what it takes.
    query_key_dims, value_dims : list of int, or None
        Dimensions that are kept in each head that stays, and those that it had; None of neurons,
        and in reports of the first versions.
    """

    name: str
    kind: str
    layer: int
    kept: int
    total: int
    kept_groups: int
    total_groups: int
    activation_error: float | None
    output_error: float | None
    sensitivity: float | None
    error_curve: list[list[float]] | None = None
    query_key_dims: list[int] | None = None
    value_dims: list[int] | None = None

    @property
    def lost_dims(self) -> bool:
        """Whether heads that stay have fewer dimensions than they had."""
        known = (self.query_key_dims, self.value_dims)
        return self.kept > 0 and any(dims[0] < dims[1] for dims in known if dims is not None)

    def dims_texts(self) -> tuple[str, str]:
        """Dimensions of queries and keys, and of values: kept, of how many; none without heads."""
        if not self.kept or self.query_key_dims is None or self.value_dims is None:
            return "", ""
        query_key, value = (f"{a}/{b}" for a, b in (self.query_key_dims, self.value_dims))
        return query_key, value


def dims_kept(left: Block, dense: Block) -> dict[str, Any]:
    """Fields of a row for the dimensions of each head; none of neurons."""
    if dense.kind != "heads":
        return {}
    return {
        "query_key_dims": [left.query_key_size, dense.query_key_size],
        "value_dims": [left.unit_size, dense.unit_size],
    }


def error_text(error: float | None) -> str:
    """A relative error, or nothing where it is not known."""
    return "" if error is None else f"{error:.4f}"
