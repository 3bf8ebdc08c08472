"""``stat-prune evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from stat_prune.cli.common_options import BatchSize, Device, Json, print_json
from stat_prune.cli.scores import ABOUT_DATA, ABOUT_TASKS, TASKS, Scoring, shown
from stat_prune.cli.settings_options import one_of


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A pruned or plain model: a folder or Hub name.")
    ],
    task: Annotated[str, typer.Option(metavar="NAME", callback=one_of(*TASKS), help=ABOUT_TASKS)],
    data: Annotated[str | None, typer.Option(help=ABOUT_DATA)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many examples.")] = None,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a piece, for perplexity.")
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For divergence: the model that MODEL was made from."),
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
      stat-prune evaluate out --task divergence --dense path/to/model --data held-out.txt
    """
    scores = Scoring(task, data, limit, context_length, batch_size, device, dense).of(model)
    if json_output:
        print_json({"model": model, "task": task, **scores})
    else:
        lines = shown(scores)
        typer.echo("\n".join([*lines, f"{model} on {task}: {lines[0]}."]))
