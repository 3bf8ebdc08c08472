"""``stat-prune trim``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stat_prune.cli.common_options import Json, print_json, print_saved


def trim(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, or a name on the Hugging Face Hub.")
    ],
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            help="Texts that stand for all that the model will read: a file, a dataset folder, or "
            "a name on the Hub. All of it is read.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the trimmed model.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A token to keep besides, as the tokenizer spells it. May be repeated."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the saved model in --output.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Leave out the tokens of MODEL that texts of one kind never need, and save the result.

    Texts whose tokens all stay give the same output; others are split into tokens that stay.
    Sentence encoders, sparse encoders and rerankers are trimmed whole.

    \b
    A multilingual encoder for one language:
      stat-prune trim xlm-roberta-base --dataset german.txt -o out
    """
    from stat_prune.checkpoints.checkpoint import check_output_directory
    from stat_prune.checkpoints.pretrained import open_model
    from stat_prune.checkpoints.replacing import check_apart
    from stat_prune.errors import LoadError
    from stat_prune.trimming import trim_vocabulary

    check_output_directory(output, overwrite)
    check_apart(output, model)
    opened, tokenizer = open_model(model)
    if tokenizer is None:
        raise LoadError(f"No tokenizer lies beside {model!r}. Save the model's own there.")
    found = trim_vocabulary(opened, tokenizer, dataset, keep=keep or ())
    found.save(output, overwrite=overwrite)
    if json_output:
        print_json({**asdict(found.report), "output": str(output)})
        return
    report = found.report
    typer.echo(str(report))
    typer.echo(
        f"Kept {report.vocabulary:,} of {report.vocabulary_before:,} tokens and "
        f"{report.parameters / report.parameters_before:.1%} of all parameters."
    )
    print_saved(output)
