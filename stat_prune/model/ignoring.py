"""Which blocks the user wants left alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from stat_prune.errors import TargetError
from stat_prune.model.blocks import Block


def without_ignored(
    blocks: Sequence[Block], ignore: Iterable[int | str]
) -> tuple[list[Block], list[Block]]:
    """Split blocks into those to prune and those to leave alone, which the fixed ones are.

    Parameters
    ----------
    blocks : sequence of Block
    ignore : iterable of int or str
        Layer numbers (negative ones count from the last layer), kinds (``"heads"``,
        ``"neurons"``), or patterns of block names such as ``"encoder.layer.0.*"``.

    Raises
    ------
    TargetError
        If an entry matches no block, or nothing is left.
    """
    if isinstance(ignore, int | str):
        ignore = [ignore]
    if not blocks:
        raise TargetError("The model has no layers, so that there is nothing to prune.")
    num_layers = 1 + max(block.layer for block in blocks)
    ignored: set[str] = set()
    for entry in ignore:
        matching = {block.name for block in blocks if _matches(block, entry, num_layers)}
        if not matching:
            raise TargetError(
                f"ignore={entry!r} matches no block. Blocks are named like {blocks[0].name!r} "
                f"and {blocks[1].name!r}; layers are numbered 0 to {num_layers - 1}."
            )
        ignored |= matching
    pruned = [block for block in blocks if block.name not in ignored and not block.fixed]
    if not pruned:
        raise TargetError(f"ignore={list(ignore)!r} leaves nothing to prune. Shorten it.")
    split = {block.expert_of for block in blocks if block.name in ignored} - {""}
    split &= {block.expert_of for block in pruned}
    if split:
        raise TargetError(
            f"ignore={list(ignore)!r} leaves some experts of {min(split)} alone and not others, "
            "but their weights are one tensor, of one size. Ignore all of them, or none."
        )
    left = {block.name for block in pruned}
    return pruned, [block for block in blocks if block.name not in left]


def _matches(block: Block, entry: int | str, num_layers: int) -> bool:
    if isinstance(entry, int):
        return block.layer == (entry + num_layers if entry < 0 else entry)
    return block.kind == entry or fnmatchcase(block.name, entry)
