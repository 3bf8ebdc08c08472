"""``stat-prune prune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from stat_prune.cli.options import BatchSize, Device, Json, Seed, one_of, print_json
from stat_prune.methods import METHODS, PEERS

if TYPE_CHECKING:
    from stat_prune.targets import Target


def prune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, or a name on the Hugging Face Hub.")
    ],
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            help="Unlabelled examples: a .txt file (one a line), .jsonl, .csv or .tsv; a dataset "
            "folder; or a name on the Hub, with its configuration after a slash (glue/sst2).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pruned model.")],
    macs: Annotated[
        float | None, typer.Option(help="Keep this fraction of multiply-accumulates, e.g. 0.6.")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="Keep this fraction of the blocks' parameters.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Keep what this relative error of each block's activations needs."),
    ] = None,
    seq_length: Annotated[
        float | None,
        typer.Option(help="Tokens a sequence for --macs. Default: the calibration mean."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=one_of(*METHODS, *PEERS),
            help=f"One of {', '.join([*METHODS, *PEERS])}.",
        ),
    ] = "stat",
    num_calibration_samples: Annotated[
        int, typer.Option(min=1, help="Examples drawn from the dataset.")
    ] = 512,
    max_seq_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens that longer examples are cut to.")
    ] = None,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    device: Device = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave alone: a layer number, heads, neurons, or a pattern of block names. "
            "May be repeated."
        ),
    ] = None,
    round_to: Annotated[
        int, typer.Option(min=1, help="Numbers of neurons are multiples of this.")
    ] = 1,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="The same sizes in every layer.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model in --output.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Prune MODEL and save the result.

    Give one of --macs, --parameters, --tolerance; each says what is kept.

    \b
    A classifier from the Hub, calibrated on its task:
      stat-prune prune textattack/bert-base-uncased-SST-2 --dataset glue/sst2 --macs 0.6 -o out
    \b
    A language model in a folder, on your own texts, feed-forward layers only:
      stat-prune prune ./llama --dataset texts.jsonl --parameters 0.8 --ignore heads -o out
    \b
    Sizes that hardware and other runtimes like:
      stat-prune prune ./bert --dataset texts.txt --macs 0.5 --uniform --round-to 64 -o out
    """
    target = _target(macs, parameters, tolerance, seq_length)

    from stat_prune import pruning
    from stat_prune.checkpoint import check_output_directory
    from stat_prune.pretrained import load_pretrained, load_tokenizer

    check_output_directory(output, overwrite=overwrite)
    result = pruning.prune(
        load_pretrained(model),
        dataset,
        target=target,
        tokenizer=load_tokenizer(model),
        method=method,
        num_calibration_samples=num_calibration_samples,
        max_seq_length=max_seq_length,
        batch_size=batch_size,
        seed=seed,
        device=device,
        ignore=[int(name) if name.isdigit() else name for name in ignore or ()],
        round_to=round_to,
        uniform=uniform,
        inplace=True,
    )
    result.save(output, overwrite=overwrite)
    if json_output:
        print_json({**result.report.to_dict(), "output": str(output)})
    else:
        Console().print(result.report.table())
        typer.echo(f"Saved to {output}. In Python: stat_prune.load({str(output)!r})")


def _target(
    macs: float | None,
    parameters: float | None,
    tolerance: float | None,
    seq_length: float | None,
) -> Target:
    if sum(value is not None for value in (macs, parameters, tolerance)) != 1:
        raise typer.BadParameter(
            "give exactly one of --macs, --parameters, --tolerance, e.g. --macs 0.6"
        )
    if seq_length is not None and macs is None:
        raise typer.BadParameter("only --macs depends on a length", param_hint="--seq-length")

    from stat_prune.targets import MACs, Parameters, Tolerance

    if macs is not None:
        return MACs(macs, seq_length=seq_length)
    return Parameters(parameters) if parameters is not None else Tolerance(tolerance or 0.0)
