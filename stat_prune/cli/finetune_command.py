"""``stat-prune finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from stat_prune.cli.common_options import (
    Device,
    Ignore,
    Json,
    MaxSeqLength,
    Seed,
    Tokenizer,
    file_of,
    print_json,
    print_saved,
)
from stat_prune.cli.interrupts import resumable
from stat_prune.cli.settings_options import block_patterns, one_of
from stat_prune.data.glue_tasks import GLUE_TASKS
from stat_prune.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stat_prune.vib import VIBConfig

#: The keys of `stat_prune.vib.MODES`, which takes seconds to import.
MODES = ("full", "fast", "masks")


def finetune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Dense, or pruned before: a folder, or a name on the Hub."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the run: checkpoints, and the model of each kept fraction, such as "
            "OUTPUT/0.5/model.",
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            help="Examples, with or without a column label: a file, folder or name, in any form "
            "that `prune --dataset` takes. With --task the folder that holds TASK/train.tsv.",
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=one_of(*GLUE_TASKS),
            help=f"Train on a GLUE task ({', '.join(GLUE_TASKS)}), its MACs counted at its average "
            "length; without --dataset the Hub's copy.",
        ),
    ] = None,
    macs: Annotated[
        float | None,
        typer.Option(help="Keep this fraction of MODEL's multiply-accumulates, 1 to train only."),
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(
            help="Keep this fraction of the blocks' parameters; with --hidden of all parameters."
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=one_of(*MODES),
            help="full: masks and weights on all data. fast: the same on 3 % of it. masks: masks "
            "alone, which needs no labels. Default: full.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=file_of(".json"),
            help="In place of --mode: a file of settings, as OUTPUT/vib_config.json is of those "
            "that a run had.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="The dense model, where MODEL was pruned before. Default: MODEL."
        ),
    ] = None,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels",
            help="Learn from labels beside the teacher, or not. Default: where all have one.",
        ),
    ] = None,
    gradual: Annotated[
        list[float] | None,
        typer.Option(
            metavar="FRACTION",
            help="A kept fraction on the way to the target, which leaves a model too. May be "
            "repeated.",
        ),
    ] = None,
    hidden: Annotated[
        float | None, typer.Option(help="Keep this fraction of the hidden dimensions, e.g. 0.75.")
    ] = None,
    seq_length: Annotated[
        float | None,
        typer.Option(help="Tokens a sequence for --macs. Default: the task's, or the data's mean."),
    ] = None,
    max_seq_length: MaxSeqLength = None,
    seed: Seed = 0,
    device: Device = None,
    ignore: Ignore = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Train masks, cut MODEL to a target, and train what is left (VTrans), in float32.

    The second stage, for those who have time and perhaps labels. Give one of --macs and
    --parameters, and --dataset or --task.

    \b
    A classifier from the Hub to half of its computation, on the labels of its task:
      stat-prune finetune textattack/bert-base-uncased-SST-2 --task sst2 --macs 0.5 -o run
      stat-prune evaluate run/0.5/model --task sst2
    \b
    Masks alone, for a sixteenth of the steps and on texts without labels:
      stat-prune finetune ./bert --dataset texts.txt --macs 0.5 --mode masks -o run
    \b
    After `prune`: nothing more is removed, and the dense model is the teacher:
      stat-prune prune ./bert --dataset texts.txt --macs 0.3 -o small
      stat-prune finetune small --task mrpc --macs 1 --teacher ./bert -o run
    \b
    A family in one run; started again after it was broken off:
      stat-prune finetune ./bert --task sst2 --gradual 0.75 --gradual 0.5 --macs 0.3 -o run
      stat-prune finetune ./bert --task sst2 --gradual 0.75 --gradual 0.5 --macs 0.3 -o run --resume
    \b
    A narrower model, embeddings and all:
      stat-prune finetune ./bert --task sst2 --parameters 0.5 --hidden 0.75 -o run
    """
    _check_usage(dataset, task, macs, parameters, mode, config, seq_length)

    from stat_prune.checkpoints.pretrained import load_tokenizer
    from stat_prune.reporting.what_was_done import in_one_line
    from stat_prune.settings.arguments import usable_device
    from stat_prune.settings.targets import MACs, Parameters
    from stat_prune.vib import vib_finetune

    if macs is not None:
        length = GLUE_TASKS[task].average_length if task and seq_length is None else seq_length
        target: MACs | Parameters = MACs(macs, seq_length=length)
    else:
        target = Parameters(parameters or 0.0)
    usable_device(device)  # before the model is read
    settings = mode or "full" if config is None else _config_in(config)
    student = _in_float32(model)
    with resumable(output, "Nothing was saved."):
        result = vib_finetune(
            student,
            _examples(student, task, dataset),
            target=target,
            mode=settings,
            teacher=None if teacher is None else _in_float32(teacher),
            tokenizer=tokenizer or load_tokenizer(model),
            labels=labels,
            gradual=gradual or (),
            hidden=hidden,
            max_seq_length=max_seq_length,
            seed=seed,
            device=device,
            ignore=block_patterns(ignore),
            output_dir=output,
            resume=resume,
        )
    place = output / f"{target.fraction:g}" / "model"
    if json_output:
        print_json({**result.report.to_dict(), "output": str(place)})
    else:
        Console().print(result.report.table())
        typer.echo(in_one_line(result.report))
        print_saved(place)


def _check_usage(
    dataset: str | None,
    task: str | None,
    macs: float | None,
    parameters: float | None,
    mode: str | None,
    config: Path | None,
    seq_length: float | None,
) -> None:
    if (macs is None) == (parameters is None):
        raise typer.BadParameter("give exactly one of --macs and --parameters, e.g. --macs 0.5")
    if dataset is None and task is None:
        raise typer.BadParameter("give examples: --dataset texts.jsonl, or --task sst2")
    if mode is not None and config is not None:
        raise typer.BadParameter("give one of --mode and --config", param_hint="--config")
    if seq_length is not None and macs is None:
        raise typer.BadParameter("only --macs depends on a length", param_hint="--seq-length")


def _in_float32(name: str) -> PreTrainedModel:
    from stat_prune.checkpoints.pretrained import load_pretrained

    model: PreTrainedModel = load_pretrained(name).float()
    return model


def _examples(model: PreTrainedModel, task: str | None, dataset: str | None) -> Any:
    if task is None:
        return dataset
    from stat_prune.evaluation import glue_examples

    return glue_examples(task, dataset, model.config)


def _config_in(path: Path) -> VIBConfig:
    from stat_prune.vib import VIBConfig

    try:
        return VIBConfig.from_json(path.read_text(encoding="utf-8"))
    except SettingsError:
        raise
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} holds no settings in JSON: {error}.") from error
