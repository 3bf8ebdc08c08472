"""``stat-prune prune``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from stat_prune.cli.common_options import (
    AutoClass,
    Json,
    KeptBytes,
    KeptEmbeddings,
    KeptHead,
    KeptMACs,
    KeptParameters,
    LatencyBatch,
    Speedup,
    Tokenizer,
    Tolerance,
    file_of,
    print_json,
    print_saved,
    target_of,
)
from stat_prune.cli.interrupts import resumable
from stat_prune.cli.scores import ABOUT_DATA, ABOUT_TASKS, DIVERGENCE, TASKS, Scoring, shown
from stat_prune.cli.settings_options import ALL, one_of, with_settings
from stat_prune.settings.options import Calibration

if TYPE_CHECKING:
    from stat_prune.reporting.report import PruningReport
    from stat_prune.reporting.result import PrunedModel, PruningResult


@with_settings(*ALL, after="latency_batch")
def prune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, or a name on the Hugging Face Hub.")
    ],
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            help="Unlabelled examples: a .txt file (one a line), .jsonl, .csv, .tsv, .parquet or "
            ".arrow; a dataset folder; or a name on the Hub, with its configuration after a slash "
            "(glue/sst2).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pruned model.")],
    tokenizer: Tokenizer = None,
    auto_class: AutoClass = None,
    macs: KeptMACs = None,
    parameters: KeptParameters = None,
    embeddings: KeptEmbeddings = None,
    lm_head: KeptHead = None,
    kept_bytes: KeptBytes = None,
    tolerance: Tolerance = None,
    speedup: Speedup = None,
    seq_length: Annotated[
        float | None,
        typer.Option(
            help="Tokens a sequence for --macs and --speedup. Default: the calibration mean."
        ),
    ] = None,
    latency_batch: LatencyBatch = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            callback=one_of(*TASKS),
            help=f"Score MODEL before and the result after, in float32. {ABOUT_TASKS}",
        ),
    ] = None,
    evaluate_data: Annotated[str | None, typer.Option(help=ABOUT_DATA)] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the saved model in --output; a folder with anything else is refused.",
        ),
    ] = False,
    layer_at_a_time: Annotated[
        bool,
        typer.Option(
            "--layer-at-a-time",
            help="For models larger than memory: weights are read layer by layer, and pruned "
            "layers written.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a run that was broken off, with Ctrl-C too: of --layer-at-a-time, or "
            "one that was begun with --resume itself and so kept what it had finished.",
        ),
    ] = False,
    work_dir: Annotated[
        Path | None,
        typer.Option(help="For finished work. Default: --output with .working."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            callback=file_of(".png", ".svg", ".pdf"),
            help="Draw what was kept into this file, e.g. plan.png.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            callback=file_of(".html"),
            help="Write a web page with tables and figures, e.g. report.html.",
        ),
    ] = None,
    json_output: Json = False,
    **settings: Any,
) -> None:
    """Prune MODEL and save the result.

    A sentence encoder, sparse encoder or reranker in the form of sentence-transformers is pruned
    for its own embeddings or scores, where that library is installed.

    Give one of --macs, --parameters, --bytes, --tolerance, which say what is kept, or --speedup;
    or --embeddings and --lm-head, alone or with one of the first two. Heads, neurons and dimensions
    inside heads (query-key, value) may have fractions of their own.

    \b
    A classifier from the Hub, calibrated on its task:
      stat-prune prune textattack/bert-base-uncased-SST-2 --dataset glue/sst2 --macs 0.6 -o out
    \b
    A language model in a folder, on your own texts, feed-forward layers only:
      stat-prune prune ./llama --dataset texts.jsonl --parameters 0.8 --ignore heads -o out
    \b
    A sentence encoder's blocks, and the half of it that is embeddings:
      stat-prune prune ./encoder -d texts.txt --macs 0.5 --embeddings 0.5 -o out
    \b
    Half of the dimensions in which queries meet keys, and fewer heads:
      stat-prune prune ./bert -d texts.txt --macs heads=0.8,query-key=0.5 -o out
    \b
    Sizes that hardware and other runtimes like:
      stat-prune prune ./bert --dataset texts.txt --macs 0.5 --uniform --round-to 64 -o out
    \b
    Twice as fast on this machine, on batches of 16 x 128 tokens:
      stat-prune prune ./bert -d texts.txt --speedup 2 --latency-batch 16 --seq-length 128 -o out
    \b
    With scores before and after, on a task or on texts that are held out:
      stat-prune prune ./bert -d glue/sst2 --macs 0.6 --evaluate sst2 -o out
      stat-prune prune ./bert -d a.txt --macs 0.6 --evaluate divergence --evaluate-data b.txt -o out
    \b
    Larger than memory, one layer at a time; after an interruption, the same with --resume:
      stat-prune prune ./llama-70b -d texts.jsonl --parameters 0.8 --layer-at-a-time -o out
    \b
    On four GPUs, or four processes, that share out the examples:
      torchrun --nproc-per-node 4 -m stat_prune prune ./llama -d texts.jsonl --parameters 0.8 -o out
    """
    given = (macs, parameters, embeddings, lm_head, kept_bytes, tolerance, speedup)
    target = settings.pop("target", None)
    if target is None or any(value is not None for value in (*given, seq_length, latency_batch)):
        target = target_of(*given, seq_length, latency_batch)
    device = settings.pop("device", None)
    batch_size = settings.get("batch_size", Calibration().batch_size)
    scoring = _scoring(model, evaluate, evaluate_data, batch_size, device)

    from stat_prune.pipeline import on_disk
    from stat_prune.settings.arguments import usable_device

    usable_device(device)  # before the model is read
    if plot is not None or report is not None:
        import_module("stat_prune.reporting.plotting")  # says so now where matplotlib is missing
    named: dict[str, Any] = {"auto_class": auto_class, "tokenizer": tokenizer}
    # First, as data that cannot be scored on should not cost a run.
    dense_scores = scoring.of(model, **named) if scoring is not None else {}

    working = work_dir or Path(f"{output}.working")
    result: PrunedModel | None
    with resumable(working, "Nothing was saved; begun with --resume, it keeps what is finished."):
        if layer_at_a_time:
            result = on_disk.prune_checkpoint(
                model,
                dataset,
                target=target,
                output_dir=output,
                **named,
                resume=resume,
                work_dir=working,
                overwrite=overwrite,
                device=device,
                **settings,
            )
        else:
            result = _pruned_in_memory(
                model,
                dataset,
                target=target,
                output_dir=output,
                **named,
                work_dir=working if resume else work_dir,
                overwrite=overwrite,
                device=device,
                settings=settings,
            )
    if result is None:
        return
    if plot is not None:
        result.plot().savefig(plot, dpi=150)
    if report is not None:
        result.save_report(report)
    scores = [dense_scores, scoring.of(str(output))] if scoring is not None else []
    if json_output:
        account = result.report.to_dict()
        print_json({**account, "output": str(output), "scores": scores, "task": evaluate})
    else:
        _print_account(result.report, output, scores, evaluate)


def _pruned_in_memory(
    model: str,
    dataset: str,
    *,
    auto_class: str | None,
    tokenizer: str | None,
    device: str | None,
    settings: Mapping[str, Any],
    **options: Any,
) -> PruningResult | None:
    """What `stat_prune.prune` makes of a model; None where another process has the result."""
    from stat_prune import pruning
    from stat_prune.machine import distributed

    with distributed.launched() as shared_device:
        opened, own_tokenizer, beside = _opened(model, auto_class, settings)
        result = pruning.prune(
            opened,
            dataset,
            tokenizer=tokenizer or own_tokenizer,
            device=device or shared_device,
            inplace=True,
            **{**options, **settings, **beside},
        )
        return None if distributed.rank() > 0 else result


def _print_account(
    report: PruningReport, output: Path, scores: Sequence[dict[str, float]], task: str | None
) -> None:
    """What became of a model, for a terminal."""
    from stat_prune.reporting.what_was_done import in_one_line

    Console().print(report.table())
    if scores:
        typer.echo("\n".join(shown(*scores, task=task)))
    typer.echo(in_one_line(report))
    print_saved(output)


def _opened(
    name: str, auto_class: str | None, settings: Mapping[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """A model, its tokenizer, and settings that go with it.

    A sentence encoder is pruned as `stat_prune.prune` does it that is given one whole, but where it
    is said what is to be made of it or preserved. Only its transformer goes into the run, so that
    what lies behind that is saved as it is in its folder.
    """
    from stat_prune.checkpoints.encoder_folders import (
        find_encoder,
        open_encoder,
    )
    from stat_prune.checkpoints.pretrained import load_pretrained, load_tokenizer
    from stat_prune.errors import LoadError, ModelWarning
    from stat_prune.measuring.sentence_embeddings import settings_inside
    from stat_prune.model.whole_encoders import transformer_of
    from stat_prune.pruning import prune
    from stat_prune.settings.settings import settings_of

    chosen = settings_of(prune, settings)
    for_embeddings = auto_class is None and chosen.objective is None
    encoder = find_encoder(name) if for_embeddings else None
    if encoder is not None:
        try:
            whole: Any = open_encoder(name, encoder)
            found = transformer_of(whole), whole.tokenizer, settings_inside(whole)
            del whole[0]  # nothing is to be around a transformer that is cut
            return found
        except LoadError as error:
            # Of a reranker the scores are preserved in either way.
            if chosen.reads_output and encoder.kind != "CrossEncoder":
                warnings.warn(
                    f"{name} is a {encoder.kind}, but its budget is spread for the output of its "
                    f"transformer, and not for its embeddings: {str(error).rstrip('.')}. "
                    "--objective hidden-states says that this is meant.",
                    ModelWarning,
                    stacklevel=2,
                )
    return load_pretrained(name, auto_class), load_tokenizer(name), {}


def _scoring(
    model: str, task: str | None, data: str | None, batch_size: int, device: str | None
) -> Scoring | None:
    if task is None and data is not None:
        raise typer.BadParameter("goes with --evaluate TASK", param_hint="--evaluate-data")
    if task is None:
        return None
    dense = model if task == DIVERGENCE else None
    return Scoring(task, data, batch_size=batch_size, device=device, dense=dense)
