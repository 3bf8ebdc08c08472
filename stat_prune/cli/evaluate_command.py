"""``stat-prune evaluate``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stat_prune.cli.common_options import BatchSize, Device, Json, one_of, print_json
from stat_prune.data.glue_tasks import GLUE_TASKS
from stat_prune.errors import DataError, LoadError

STS_COSINE, PERPLEXITY, SQUAD = "sts-cosine", "perplexity", "squad"


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A pruned or plain model: a folder or Hub name.")
    ],
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=one_of(*GLUE_TASKS, SQUAD, STS_COSINE, PERPLEXITY),
            help=f"A GLUE task ({', '.join(GLUE_TASKS)}) for a classifier; {SQUAD} for a question "
            f"answering model; {STS_COSINE} (STS-B through mean-pooled embeddings) for a sentence "
            f"encoder; {PERPLEXITY} for a causal language model.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="For GLUE and sts-cosine the folder that holds TASK/dev.tsv, for squad a file as "
            "SQuAD publishes it; default the Hub's copy. For perplexity the texts, in any form "
            "that `prune --dataset` takes."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many examples.")] = None,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a piece, for perplexity.")
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    json_output: Json = False,
) -> None:
    """Score a model on a task's development set, in float32.

    \b
      stat-prune evaluate out --task sst2
      stat-prune evaluate out --task mrpc --data ~/glue
      stat-prune evaluate out --task squad --data dev-v2.0.json --limit 1000
      stat-prune evaluate out --task perplexity --data stories.jsonl --limit 200
    """
    if task == PERPLEXITY and data is None:
        raise typer.BadParameter("perplexity needs texts: pass --data", param_hint="--data")
    import torch

    from stat_prune.checkpoints.pretrained import load_pretrained, load_tokenizer
    from stat_prune.evaluation import (
        evaluate_glue,
        evaluate_squad,
        perplexity,
        read_glue,
        sts_spearman,
    )
    from stat_prune.settings.arguments import usable_device

    where = usable_device(device) or "cpu"
    network = load_pretrained(model)
    torch.nn.Module.to(network, where, torch.float32)
    tokenizer = load_tokenizer(model)
    if tokenizer is None:
        raise LoadError(f"{model!r} has no tokenizer, which evaluation needs.")
    scores: dict[str, Any]
    if task == PERPLEXITY:
        texts = _texts(data or "", limit)
        scores = perplexity(
            network, tokenizer, texts, context_length=context_length, batch_size=batch_size
        )
    elif task == STS_COSINE:
        pairs = read_glue("stsb", data).spread(limit)
        scores = {
            "spearman": sts_spearman(
                network, tokenizer, pairs.texts, pairs.labels, batch_size=batch_size
            ),
            "num_examples": len(pairs.texts),
        }
    elif task == SQUAD:
        scores = evaluate_squad(network, tokenizer, data, limit=limit, batch_size=batch_size)
    else:
        scores = evaluate_glue(network, tokenizer, task, data, limit=limit, batch_size=batch_size)
    if json_output:
        print_json({"model": model, "task": task, **scores})
    else:
        for name, value in scores.items():
            typer.echo(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


def _texts(data: str, limit: int | None) -> list[str]:
    from stat_prune.data.examples import iterate_examples

    texts = []
    for example in iterate_examples(data, seed=0):
        if not isinstance(example, str):
            raise DataError(
                f"Perplexity is that of single texts, but {data} holds {str(example)[:80]!r}. Put "
                "each text as one string into a column 'text'."
            )
        texts.append(example)
    if not texts:
        raise DataError(f"{data} holds no texts to measure perplexity on.")
    return texts[:limit]
