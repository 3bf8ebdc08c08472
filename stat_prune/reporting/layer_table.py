"""The blocks of a report for a terminal: one line a layer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import zip_longest

from rich.table import Table

from stat_prune.reporting.block_row import BlockRow

_HEADINGS = ("layer", "heads", "key/value", "error", "neurons", "error")


def layer_table(blocks: Sequence[BlockRow]) -> Table:
    """What is kept of each layer and the error of each output, in 80 columns.

    Where a layer has several blocks of a kind, the others are named on lines of their own. Errors
    are left out where none is known.
    """
    lines = _lines(blocks)
    shown = {"layer", "heads", "neurons"}
    if any(cells[2] for cells in lines):
        shown.add("key/value")
    if not all(math.isnan(block.output_error) for block in blocks):
        shown.add("error")
    columns = [number for number, heading in enumerate(_HEADINGS) if heading in shown]
    table = Table()
    for number in columns:
        if number == 0:
            table.add_column(_HEADINGS[number], overflow="fold")
        else:
            table.add_column(_HEADINGS[number], justify="right")
    for cells in lines:
        table.add_row(*(cells[number] for number in columns))
    return table


def _lines(blocks: Sequence[BlockRow]) -> list[tuple[str, ...]]:
    """The cells of each line, in the order of `_HEADINGS`."""
    layers: dict[int, list[BlockRow]] = {}
    for block in blocks:
        layers.setdefault(block.layer, []).append(block)
    lines: list[tuple[str, ...]] = []
    for members in layers.values():
        # Up to the layer's number: encoder.layer.0 of encoder.layer.0.heads.
        found = re.match(r".*?\.\d+(?=\.)", members[0].name)
        layer = found[0] if found else members[0].name
        heads = [block for block in members if block.kind == "heads"]
        neurons = [block for block in members if block.kind == "neurons"]
        for number, (some, others) in enumerate(zip_longest(heads, neurons)):
            names = [one.name.removeprefix(f"{layer}.") for one in (some, others) if one]
            label = "  " + ", ".join(names) if number else layer
            lines.append((label, *_of_heads(some), *_of_neurons(others)))
    return lines


def _of_heads(block: BlockRow | None) -> tuple[str, str, str]:
    if block is None:
        return "", "", ""
    shared = block.total_groups < block.total
    groups = f"{block.kept_groups}/{block.total_groups}" if shared else ""
    return f"{block.kept}/{block.total}", groups, f"{block.output_error:.4f}"


def _of_neurons(block: BlockRow | None) -> tuple[str, str]:
    return (
        ("", "") if block is None else (f"{block.kept}/{block.total}", f"{block.output_error:.4f}")
    )
