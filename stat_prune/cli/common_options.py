"""What the commands have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from stat_prune.settings.methods import ALLOCATIONS, EFFORTS, OBJECTIVES


def one_of(*names: str) -> Callable[[str | None], str | None]:
    """A callback that refuses every other value, as wrong usage."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}.")
        return value

    return check


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of every random choice.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences at once; changes no result.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave alone: a layer number, heads, neurons, or a pattern of block names. "
        "May be repeated."
    ),
]
MaxSeqLength = Annotated[
    int | None, typer.Option(min=1, help="Tokens that longer examples are cut to.")
]
KeptMACs = Annotated[
    float | None, typer.Option(help="Keep this fraction of multiply-accumulates, e.g. 0.6.")
]
KeptParameters = Annotated[
    float | None, typer.Option(help="Keep this fraction of the blocks' parameters.")
]
KeptBytes = Annotated[
    float | None,
    typer.Option(
        "--bytes",
        help="Keep this fraction of the whole file of weights; blocks and token embeddings share "
        "what is to go.",
    ),
]
KeptEmbeddings = Annotated[
    float | None,
    typer.Option(
        help="Keep this fraction of the token embeddings' parameters, as two factors; alone, or "
        "with --macs or --parameters."
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=one_of(*EFFORTS),
        help=f"What the search for the budget may spend: {', '.join(EFFORTS)}. Default: normal; "
        "layer by layer fast.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=one_of(*ALLOCATIONS),
        help="How the budget is spread over blocks: searched, by measuring whole pruned models; "
        "probed, by what each block alone does to the output; unweighted, by the blocks' own "
        "errors; even. Default: the method's own way.",
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=one_of(*OBJECTIVES),
        help="What is to be preserved: logits, the final hidden-states, or their mean over a "
        "sequence (pooled). Default: logits where there are any.",
    ),
]
AutoClass = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The kind of model to make of MODEL, such as AutoModel where it lacks the head that "
        "its config names. Default: what the config names.",
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A folder, or a name on the Hub. Default: that of MODEL."),
]
Device = Annotated[str | None, typer.Option(help="For instance cuda. Default: cpu.")]


def file_of(*suffixes: str) -> Callable[[Path | None], Path | None]:
    """A callback that refuses files of other formats or in no folder, before any work."""

    def check(path: Path | None) -> Path | None:
        if path is not None and path.suffix not in suffixes:
            raise typer.BadParameter(f"{path} does not end in {' or '.join(suffixes)}.")
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}.")
        return path

    return check


def block_patterns(ignore: Iterable[str] | None) -> list[int | str]:
    """What to leave alone; layers are told by their numbers."""
    return [int(name) if re.fullmatch("-?[0-9]+", name) else name for name in ignore or ()]


def print_saved(place: Path) -> None:
    """Where a model was saved, and how it is loaded."""
    typer.echo(f"Saved to {place}. In Python: stat_prune.load({str(place)!r})")


def print_json(content: dict[str, Any]) -> None:
    """One object on one line of stdout."""
    typer.echo(json.dumps(content))
