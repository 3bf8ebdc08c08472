"""What the commands have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stat_prune.cli.settings_options import DEVICE, IGNORE, option

if TYPE_CHECKING:
    from stat_prune.settings.targets import Target

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[int, option("seed")]
BatchSize = Annotated[int, option("batch_size")]
MaxSeqLength = Annotated[int | None, option("max_seq_length")]
Ignore = Annotated[list[str] | None, IGNORE]
Device = Annotated[str | None, DEVICE]


def kept(text: str) -> float | dict[str, float]:
    """A fraction, or one for each of some kinds: ``heads=0.8,query-key=0.5``."""
    try:
        if "=" not in text:
            return float(text)
        pairs = [one.partition("=") for one in text.split(",")]
        found = {kind.strip(): float(value) for kind, _, value in pairs}
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a number such as 0.6 nor numbers by kind such as "
            "heads=0.8,neurons=0.6."
        ) from error
    if len(found) < len(pairs):
        raise typer.BadParameter(f"{text!r} names a kind twice.")
    return found


_FRACTIONS: dict[str, Any] = {"parser": kept, "metavar": "FRACTION"}
KeptMACs = Annotated[
    Any,
    typer.Option(
        **_FRACTIONS,
        help="Keep this fraction of multiply-accumulates, e.g. 0.6; or fractions of kinds by "
        "themselves: heads=0.8,query-key=0.5,value=0.75,neurons=0.7.",
    ),
]
KeptParameters = Annotated[
    Any,
    typer.Option(
        **_FRACTIONS,
        help="Keep this fraction of the blocks' parameters, or fractions of kinds as for --macs.",
    ),
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
KeptHead = Annotated[
    float | None,
    typer.Option(
        "--lm-head",
        help="Keep this fraction of the parameters of a language model's head that does not share "
        "the embeddings, as two factors; alone, or with --macs or --parameters.",
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="Keep what this relative error of each block's activations needs."),
]
Speedup = Annotated[
    float | None, typer.Option(help="Make the forward pass this many times as fast here, e.g. 2.")
]
LatencyBatch = Annotated[
    int | None,
    typer.Option(min=1, help="Sequences at once that --speedup is timed on. Default: 1."),
]
Fractions = float | Mapping[str, float]
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


def file_of(*suffixes: str) -> Callable[[Path | None], Path | None]:
    """A callback that refuses files of other formats or in no folder, before any work."""

    def check(path: Path | None) -> Path | None:
        if path is not None and path.suffix not in suffixes:
            raise typer.BadParameter(f"{path} does not end in {' or '.join(suffixes)}.")
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}.")
        return path

    return check


def print_saved(place: Path) -> None:
    """Where a model was saved, and how it is loaded."""
    typer.echo(f"Saved to {place}. In Python: stat_prune.load({str(place)!r})")


def print_json(content: dict[str, Any]) -> None:
    """One object on one line of stdout."""
    typer.echo(json.dumps(content))


def target_of(
    macs: Fractions | None,
    parameters: Fractions | None,
    embeddings: float | None,
    lm_head: float | None,
    kept_bytes: float | None,
    tolerance: float | None,
    speedup: float | None,
    seq_length: float | None,
    latency_batch: int | None,
) -> Target:
    """What is kept, by the options that say so; wrong usage where they do not go together."""
    one_of_them = (macs, parameters, kept_bytes, tolerance, speedup)
    given = sum(value is not None for value in one_of_them)
    named = {"embeddings": embeddings, "lm_head": lm_head}
    tables = {name: value for name, value in named.items() if value is not None}
    if given != 1 and (given or not tables):
        raise typer.BadParameter(
            "give exactly one of --macs, --parameters, --bytes, --tolerance, --speedup, e.g. "
            "--macs 0.6"
        )
    if seq_length is not None and macs is None and speedup is None:
        raise typer.BadParameter(
            "only --macs and --speedup depend on a length", param_hint="--seq-length"
        )
    if latency_batch is not None and speedup is None:
        raise typer.BadParameter("only --speedup is timed", param_hint="--latency-batch")
    if tables and (kept_bytes, tolerance, speedup) != (None, None, None):
        option = f"--{next(iter(tables)).replace('_', '-')}"
        raise typer.BadParameter("goes with --macs or --parameters, or alone", param_hint=option)

    from stat_prune.settings.targets import Bytes, MACs, Parameters, Speedup, Tolerance

    if macs is not None:
        return MACs(macs, seq_length=seq_length, **tables)
    if speedup is not None:
        whole = int(seq_length) if seq_length is not None and seq_length.is_integer() else None
        if seq_length is not None and whole is None:
            raise typer.BadParameter("--speedup needs a whole number", param_hint="--seq-length")
        return Speedup(speedup, batch_size=latency_batch or 1, seq_length=whole)
    if kept_bytes is not None:
        return Bytes(kept_bytes)
    if isinstance(parameters, Mapping):
        return Parameters({**parameters, **tables})
    if parameters is not None:
        return Parameters(parameters, **tables)
    if tables:
        return Parameters(tables)
    return Tolerance(tolerance or 0.0)
