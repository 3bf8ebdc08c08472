"""``stat-prune plan``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from stat_prune.cli.common_options import (
    BatchSize,
    Device,
    Effort,
    Json,
    KeptMACs,
    KeptParameters,
    print_json,
)


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder with config.json, or a name on the Hugging Face Hub."
        ),
    ],
    macs: KeptMACs = None,
    parameters: KeptParameters = None,
    num_calibration_samples: Annotated[
        int, typer.Option(min=1, help="Examples to be drawn from the dataset.")
    ] = 512,
    seq_length: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 512,
    batch_size: BatchSize = 32,
    effort: Effort = None,
    device: Device = None,
    json_output: Json = False,
) -> None:
    """Foresee memory, disk and time of pruning, from the config alone: no weights are read.

    Time is estimated from a few seconds of measuring this machine.

    \b
      stat-prune plan meta-llama/Llama-2-7b-hf --macs 0.7 --num-calibration-samples 128
      stat-prune plan path/to/model --parameters 0.5 --json
    """
    if (macs is None) == (parameters is None):
        raise typer.BadParameter("Pass one of --macs and --parameters.")
    from stat_prune.pipeline.foreseeing.estimate import estimate
    from stat_prune.settings.targets import MACs, Parameters

    target = MACs(macs) if macs is not None else Parameters(parameters or 0.0)
    found = estimate(
        model,
        target=target,
        seq_length=seq_length,
        num_calibration_samples=num_calibration_samples,
        batch_size=batch_size,
        device=device,
        **({} if effort is None else {"effort": effort}),
    )
    if json_output:
        print_json(found.to_dict())
    else:
        Console().print(found.table())
        typer.echo(found.in_one_line())
