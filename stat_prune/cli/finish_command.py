"""``stat-prune finish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stat_prune.cli.common_options import (
    Device,
    Json,
    MaxSeqLength,
    Seed,
    print_json,
    print_saved,
)
from stat_prune.cli.settings_options import one_of, option
from stat_prune.reporting.finish_report import Finish
from stat_prune.settings.methods import FINISHES, OBJECTIVES
from stat_prune.settings.options import MASK_FRACTION


def finish(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder with a pruned model.")],
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            help="Unlabelled examples, in any form that `prune --dataset` takes. The more, the "
            "better.",
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The dense model, whose outputs are matched: a folder, or a name on the Hub.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the finished model.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=one_of(*FINISHES),
            help="scales: a factor for every channel that is left, biases and norms. lora: more "
            "numbers, for models that have lost much. weights: all of the layers, for examples by "
            "the ten thousand.",
        ),
    ] = "scales",
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=one_of(*OBJECTIVES),
            help=f"What is fitted to ({', '.join(OBJECTIVES)}). Default: what the run was to "
            "preserve.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A folder, or a name on the Hub. Default: that of FOLDER."
        ),
    ] = None,
    num_calibration_samples: Annotated[
        int,
        typer.Option(
            min=1,
            help="Sequences to read; fewer examples are read several times, five at most.",
        ),
    ] = 4096,
    max_seq_length: MaxSeqLength = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences held out that are measured at once.")
    ] = 32,
    mask_fraction: Annotated[float, option("mask_fraction")] = MASK_FRACTION,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the saved model in --output.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Fit a pruned model to the dense model's outputs, without labels, and save the result.

    Examples held out say when to stop, and whether any of it is taken. Sizes, plan and the way of
    loading stay the same. Sentence encoders, sparse encoders and rerankers are fitted whole.

    \b
    After `prune`, on more texts than it was calibrated on:
      stat-prune prune ./bert --dataset texts.txt --macs 0.3 -o small
      stat-prune finish small --dataset more.txt --teacher ./bert -o finished
    \b
    After a run layer by layer, the layers' weights themselves:
      stat-prune finish small -d texts.jsonl --teacher ./llama --kind weights -o finished
    """
    from stat_prune import finishing
    from stat_prune.checkpoints.checkpoint import check_output_directory
    from stat_prune.checkpoints.replacing import check_apart
    from stat_prune.settings.arguments import usable_device

    usable_device(device)  # before the models are read
    check_output_directory(output, overwrite)
    for name in (folder, teacher):
        check_apart(output, name, "finished" if name == folder else "matched")
    chosen: Any = objective
    result = finishing.finish(
        folder,
        dataset,
        kind=kind,
        teacher=teacher,
        tokenizer=tokenizer,
        num_calibration_samples=num_calibration_samples,
        max_seq_length=max_seq_length,
        batch_size=batch_size,
        seed=seed,
        mask_fraction=mask_fraction,
        device=device,
        objective=chosen,
    )
    result.save(output, overwrite=overwrite)
    report = result.report
    if json_output:
        print_json({**report.to_dict(), "output": str(output)})
        return
    assert report.finish is not None
    typer.echo(str(report.finish))
    typer.echo(_in_one_line(report.finish))
    print_saved(output)


def _in_one_line(done: Finish) -> str:
    """What a fit has brought."""
    before, after = done.distances[0], done.distances[done.taken]
    if not done.taken:
        return f"Nothing did better on what was held out than the start, at {before:.3g}: it stays."
    return (
        f"Fitted {done.numbers:,} numbers: {before:.3g} -> {after:.3g} from the dense model on "
        f"{done.held_out_sequences} sequences held out."
    )
