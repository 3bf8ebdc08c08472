"""``stat-prune plan``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from stat_prune.cli.common_options import (
    Json,
    KeptBytes,
    KeptMACs,
    KeptParameters,
    print_json,
)
from stat_prune.cli.settings_options import with_settings


@with_settings(
    *("method", "num_calibration_samples", "batch_size", "effort", "budget", "ignore", "device"),
    after="kept_bytes",
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
    kept_bytes: KeptBytes = None,
    seq_length: Annotated[int, typer.Option(min=1, help="Tokens of each example.")] = 512,
    json_output: Json = False,
    **settings: Any,
) -> None:
    """Foresee memory, disk and time of pruning, from the config alone: no weights are read.

    Time is estimated from a few seconds of measuring this machine.

    \b
      stat-prune plan meta-llama/Llama-2-7b-hf --macs 0.7 --num-calibration-samples 128
      stat-prune plan path/to/model --parameters 0.5 --json
    """
    target = settings.pop("target", None)
    given = sum(value is not None for value in (macs, parameters, kept_bytes))
    if given > 1 or (not given and target is None):
        raise typer.BadParameter("Pass one of --macs, --parameters and --bytes.")
    from stat_prune.pipeline.foreseeing.estimate import estimate
    from stat_prune.settings.targets import Bytes, MACs, Parameters

    if macs is not None:
        target = MACs(macs)
    elif parameters is not None:
        target = Parameters(parameters)
    elif kept_bytes is not None:
        target = Bytes(kept_bytes)
    found = estimate(model, target=target, seq_length=seq_length, **settings)
    if json_output:
        print_json(found.to_dict())
    else:
        Console().print(found.table())
        typer.echo(found.in_one_line())
