"""What the demo found: a table, a page, a plot."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

#: Compared with: the channels of least weight go, and nothing makes up for them.
BASELINE = "magnitude"
#: A third of the file: blocks and token embeddings share the budget.
THIRD = "a third"
#: Behind the name of a model whose weights are rounded.
INT8 = ", int8"
SAVED_FRACTION = 0.6
NEIGHBORS = 10
TIMED_PASSAGES, TIMED_TOKENS = 32, 64


@dataclass(frozen=True)
class DemoRow:
    """One model of the comparison.

    Attributes
    ----------
    method : str
    kept_macs : float
        Of the dense model's blocks.
    mebibytes : float
        Of all parameters; of int8, a byte a weight and a scale a row.
    macs : float
        Of the blocks, for one passage of the calibration set's mean length.
    speedup : float or None
        Dense over pruned median latency on one batch of held-out passages; of int8 None, as it is
        computed with in float32.
    cosine : float
        Mean cosine of a held-out passage's embedding to the original one.
    recall : float
        Share of the original's 10 nearest held-out passages found again.
    """

    method: str
    kept_macs: float
    mebibytes: float
    macs: float
    speedup: float | None
    cosine: float
    recall: float


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured and where it put things.

    Attributes
    ----------
    rows : list of DemoRow
        The dense model first.
    facts : dict
        Model, data, seed, seconds, versions.
    output_dir : Path
        Holds ``model/``, ``report.md``, ``results.json`` and ``tradeoff.png``.
    """

    rows: list[DemoRow]
    facts: dict[str, Any]
    output_dir: Path

    HEADINGS = ("model", "MACs kept", "GMACs", "size", "speed", "cosine", "recall@10")
    LEGEND = (
        "a third: of the file; token embeddings become two factors\n"
        "int8: weights rounded row by row, but computed with in float32"
    )

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, a tuple a row, in the order of `HEADINGS`."""
        return [
            (
                row.method,
                f"{row.kept_macs:.2f}",
                f"{row.macs / 1e9:.3f}",
                f"{row.mebibytes:.1f} MiB",
                "-" if row.speedup is None else f"{row.speedup:.2f}x",
                f"{row.cosine:.3f}",
                f"{row.recall:.3f}",
            )
            for row in self.rows
        ]

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.summary(), caption=self.LEGEND)
        for heading in self.HEADINGS:
            table.add_column(heading, justify="left" if heading == "model" else "right")
        for cells, after in zip(self.cells(), [*self.rows[1:], self.rows[-1]], strict=True):
            own, others = cells[0].removesuffix(INT8), after.method.removesuffix(INT8)
            table.add_row(*cells, end_section=own != others)
        return table

    def summary(self) -> str:
        """One sentence: what was pruned on what."""
        return (
            f"{self.facts['model']}, calibrated on {self.facts['calibration_passages']} passages, "
            f"measured on {self.facts['held_out_passages']} others"
        )

    def next_steps(self) -> str:
        """What to do with it."""
        model = self.output_dir / "model"
        # after `make demo` the environment is not the shell's own
        python = os.path.relpath(sys.executable)
        command = "stat-prune" if shutil.which("stat-prune") else f"{python} -m stat_prune"
        return "\n".join(
            (
                f"The model with {SAVED_FRACTION:.0%} of the MACs is in {model}. What was removed:",
                f"  {command} inspect {model}",
                f"In Python, as an ordinary {self.facts['model_class']}:",
                f'  stat_prune.load("{model}")',
                "The same for a model of your own, with a file of texts, one a line:",
                f"  {command} prune MODEL --dataset texts.txt --macs 0.6 --output out",
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Rows and facts as plain dicts."""
        return {
            "rows": [asdict(row) for row in self.rows],
            **self.facts,
            "output_dir": str(self.output_dir),
        }

    def to_markdown(self) -> str:
        """A page with the table, the plot and how they came about."""
        lines = [
            "| " + " | ".join(self.HEADINGS) + " |",
            "| --- |" + " ---: |" * (len(self.HEADINGS) - 1),
            *("| " + " | ".join(cells) + " |" for cells in self.cells()),
        ]
        facts = "\n".join(
            f"- {name.replace('_', ' ')}: {_text(v)}" for name, v in self.facts.items()
        )
        return (
            f"# stat-prune demo\n\n{self.summary()}.\n\n"
            + "\n".join(lines)
            + f"\n\n![Quality against MACs](tradeoff.png)\n\n"
            f"- `stat` is this package's method, `{BASELINE}` the same budget with the channels of "
            "least weight removed and nothing corrected.\n"
            f"- `{THIRD}`: a third of the file, shared out between token embeddings, which become "
            "two factors, and blocks.\n"
            f"- `{INT8.strip(', ')}`: every row of the weights of linear layers and embeddings is "
            "rounded to 255 steps of a scale of its own; size is a byte a weight and 4 a scale. It "
            "is computed with in float32, so that there is no speed.\n"
            "- MACs are those of attention and feed-forward layers for one passage of mean "
            "length; size counts all parameters, embeddings too.\n"
            f"- speed: dense over pruned latency, medians of alternating runs on "
            f"{TIMED_PASSAGES} passages of up to {TIMED_TOKENS} tokens.\n"
            "- cosine and recall@10 compare embeddings of held-out passages with those of the "
            "dense model.\n\n"
            f"## How\n\n{facts}\n\n## Next\n\n```\n{self.next_steps()}\n```\n"
        )


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def draw(rows: Sequence[DemoRow], path: Path) -> None:
    """Plot recall and cosine against the MACs kept, into a PNG file.

    Without int8, which changes no MACs.
    """
    from stat_prune.reporting.plotting import (
        score_curves,  # an extra: not everyone who prunes draws
    )

    shown = [row for row in rows if not row.method.endswith(INT8)]
    records = [
        {
            "task": name,
            "method": method,
            "metric": label,
            "dense": getattr(rows[0], name),
            "scores": {
                str(row.kept_macs): getattr(row, name) for row in shown if row.method == method
            },
        }
        for name, label in (
            ("recall", "recall@10 of the original's neighbours"),
            ("cosine", "cosine to the original embedding"),
        )
        for method in dict.fromkeys(row.method for row in shown[1:])
    ]
    score_curves(records).savefig(path, dpi=120)
