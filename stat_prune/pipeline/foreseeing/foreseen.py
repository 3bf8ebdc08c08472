"""What is foreseen of a run, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from stat_prune.reporting.report import Size


@dataclass(frozen=True)
class Estimate:
    """What pruning will take; ``print(estimate)`` shows a table.

    Attributes
    ----------
    model : str
        Its class.
    dtype : str
    before : Size
        Of the dense model; MACs at `seq_length` tokens.
    after : Size
        Of the pruned one, where MACs and parameters of the blocks shrink alike, and rows of the
        embeddings that are kept exactly fill what is left beside their factors.
    seq_length : float
        Tokens a sequence.
    num_samples : int
        Calibration sequences.
    seconds : dict of str to float
        Wall-clock time by stage, on this machine as it is now; the search for the budget is that
        of `stat_prune.prune`.
    memory : int or None
        Peak bytes of `stat_prune.prune`; None where that is not foreseen, nor `seconds`.
    memory_by_layer : int or None
        Peak bytes of `stat_prune.prune_checkpoint`; None where it refuses model or target.
    disk : int
        Bytes of `prune_checkpoint`'s working folder.
    ranks : dict of str to int
        Of embeddings and head where these have fractions of their own: the largest that factors
        may have; exact rows beside them take the place of some.
    not_foreseen : str
        Why it is not known what pruning will take; ``""`` where it is.
    """

    model: str
    dtype: str
    before: Size
    after: Size
    seq_length: float
    num_samples: int
    seconds: dict[str, float] = field(default_factory=dict)
    memory: int | None = None
    memory_by_layer: int | None = None
    disk: int = 0
    ranks: dict[str, int] = field(default_factory=dict)
    not_foreseen: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def in_one_line(self) -> str:
        """What pruning will take."""
        if self.memory is None:
            return f"What it will take is not foreseen: {self.not_foreseen}."
        layers = self.memory_by_layer
        beside = "" if layers is None else f" ({amount(layers)} layer by layer)"
        return (
            f"It will take {amount(self.memory)} of memory{beside} and about "
            f"{duration(sum(self.seconds.values()))}."
        )

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=f"{self.model}, {self.dtype}", show_header=False)
        before, after = self.before, self.after
        rows = {
            "parameters": f"{before.parameters:,} -> about {after.parameters:,}",
            "weights": f"{amount(before.bytes)} -> about {amount(after.bytes)}",
            f"MACs at {self.seq_length:.4g} tokens": f"{before.block_macs:.4g} -> "
            f"{after.block_macs:.4g}",
        }
        for name, rank in self.ranks.items():
            rows[f"rank of {name.replace('_', ' ')}"] = f"at most {rank:,}"
        rows["peak memory, whole model"] = "-" if self.memory is None else amount(self.memory)
        rows["peak memory, layer by layer"] = (
            "cannot be pruned so"
            if self.memory_by_layer is None
            else f"{amount(self.memory_by_layer)}, and {amount(self.disk)} of disk"
        )
        whole = sum(self.seconds.values())
        rows["time"] = "-" if self.memory is None else f"about {duration(whole)}"
        for name, value in rows.items():
            table.add_row(name, value)
        for stage, seconds in self.seconds.items():
            table.add_row(f"  {stage}", duration(seconds))
        return table


def amount(count: float) -> str:
    """Bytes in the unit that fits."""
    gib = count / 2**30
    return f"{gib:.2f} GiB" if gib >= 1 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
