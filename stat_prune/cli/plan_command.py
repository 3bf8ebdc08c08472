"""``stat-prune plan``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.console import Console

from stat_prune.cli.common_options import (
    Json,
    KeptBytes,
    KeptEmbeddings,
    KeptHead,
    KeptMACs,
    KeptParameters,
    LatencyBatch,
    Speedup,
    Tolerance,
    print_json,
    target_of,
)
from stat_prune.cli.settings_options import with_settings


@with_settings(
    *("method", "num_calibration_samples", "max_seq_length", "batch_size", "round_to", "uniform"),
    *("remove_blocks", "head_dims", "serve_with", "budget", "passes", "effort", "ignore", "device"),
    after="latency_batch",
)
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder with config.json, or a name on the Hugging Face Hub."
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            help="The examples, as for `prune`: as many and as long as they are.",
        ),
    ] = None,
    seq_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of each example, without --dataset. Default: 512."),
    ] = None,
    macs: KeptMACs = None,
    parameters: KeptParameters = None,
    embeddings: KeptEmbeddings = None,
    lm_head: KeptHead = None,
    kept_bytes: KeptBytes = None,
    tolerance: Tolerance = None,
    speedup: Speedup = None,
    latency_batch: LatencyBatch = None,
    json_output: Json = False,
    **settings: Any,
) -> None:
    """Foresee memory, disk and time of pruning, from the config alone: no weights are read.

    Time is estimated from a few seconds of measuring this machine. Of published methods, of
    --remove-blocks and --head-dims, and of --embeddings and --lm-head alone, it is the sizes that
    are foreseen, but neither memory nor time.

    \b
      stat-prune plan meta-llama/Llama-2-7b-hf --macs 0.7 --num-calibration-samples 128
      stat-prune plan path/to/model -d texts.jsonl --speedup 2
      stat-prune plan path/to/model --parameters 0.5 --json
    """
    if dataset is not None and seq_length is not None:
        raise typer.BadParameter("says what --dataset does itself", param_hint="--seq-length")
    given = (macs, parameters, embeddings, lm_head, kept_bytes, tolerance, speedup)
    target = settings.pop("target", None)
    if target is None or any(value is not None for value in (*given, latency_batch)):
        target = target_of(*given, None, latency_batch)
    from stat_prune.checkpoints.encoder_folders import find_encoder, folder_of_transformer
    from stat_prune.pipeline.foreseeing.estimate import estimate

    encoder = find_encoder(model) if os.path.isdir(model) or dataset is not None else None
    model = folder_of_transformer(model, encoder)
    if dataset is not None:
        from stat_prune.checkpoints.pretrained import load_tokenizer

        tokenizer = load_tokenizer(model)
        if tokenizer is not None and encoder is not None and encoder.max_seq_length:
            tokenizer.model_max_length = encoder.max_seq_length  # as `prune` reads texts
        settings |= {"dataset": dataset, "tokenizer": tokenizer}
    elif seq_length is not None:
        settings["seq_length"] = seq_length
    found = estimate(model, target=target, **settings)
    if json_output:
        print_json(found.to_dict())
    else:
        Console().print(found.table())
        typer.echo(found.in_one_line())
