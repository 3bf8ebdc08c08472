"""The blocks of a report for a terminal: one line a layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from rich.table import Table

from stat_prune.reporting.block_row import BlockRow, error_text

_HEADINGS = (
    "layer",
    "heads",
    "key/value",
    "query-\nkey\ndims",
    "value\ndims",
    "error",
    "neurons",
    "error",
)
_IN_EVERY_TABLE = ("layer", "heads", "neurons")


def layer_table(blocks: Sequence[BlockRow]) -> Table:
    """What is kept of each layer and the error of each output, in 80 columns.

    Where a layer has several blocks of a kind, the others are named on lines of their own. Errors
    are left out where none is known, and dimensions inside heads where none has left.
    """
    dims = any(block.lost_dims for block in blocks)
    lines = _lines(blocks, dims=dims)
    columns = [
        number
        for number, heading in enumerate(_HEADINGS)
        if heading in _IN_EVERY_TABLE or any(cells[number] for cells in lines)
    ]
    # Eight columns with the numbers of a large Llama leave no room to spare.
    table = Table(pad_edge=not dims)
    for number in columns:
        heading = _HEADINGS[number].replace("/", "/\n") if dims else _HEADINGS[number]
        if number == 0:
            table.add_column(heading, overflow="fold")
        else:
            # Where it gets narrow, names of layers are broken, and numbers are not.
            table.add_column(heading, justify="right", no_wrap=True)
    for cells in lines:
        table.add_row(*(cells[number] for number in columns))
    return table


def _lines(blocks: Sequence[BlockRow], *, dims: bool) -> list[tuple[str, ...]]:
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
            lines.append((label, *_of_heads(some, dims=dims), *_of_neurons(others)))
    return lines


def _of_heads(block: BlockRow | None, *, dims: bool) -> tuple[str, ...]:
    if block is None:
        return "", "", "", "", ""
    shared = block.total_groups < block.total
    groups = f"{block.kept_groups}/{block.total_groups}" if shared else ""
    inside = block.dims_texts() if dims else ("", "")
    return f"{block.kept}/{block.total}", groups, *inside, error_text(block.output_error)


def _of_neurons(block: BlockRow | None) -> tuple[str, str]:
    if block is None:
        return "", ""
    return f"{block.kept}/{block.total}", error_text(block.output_error)
