"""Zero-shot tasks through lm-evaluation-harness, on the pruned model as it is in memory.

    python benchmarks/zero_shot.py --model meta-llama/Llama-2-7b-hf --task piqa --task winogrande \
        --calibration train.txt --device cuda --dtype float16

Needs the extra ``zero-shot`` and, but for tasks of one's own (--include), the Hub.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from harness import options
from harness.cells import Grid, run
from harness.sources import find_data, find_model, load
from harness.task import Task
from stat_prune import Parameters
from stat_prune.errors import SettingsError
from wikitext2 import LOCAL_TRAIN, blocks, texts_of

# Those of SliceGPT (Ashkboos et al. 2024, section 4).
DEFAULT_TASKS = ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")
# The first of these that a task reports is the one that is tabulated.
METRICS = ("acc_norm,none", "acc,none")


def zero_shot_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, float]:
    """Accuracy by task, length-normalised where the task has that, and their mean, in per cent.

    Raises
    ------
    SettingsError
        If lm-evaluation-harness is not installed, or a task reports no accuracy.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SettingsError(
            "Zero-shot tasks need lm-evaluation-harness: pip install 'stat-prune[zero-shot]'"
        ) from error
    results = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=tasks,
        limit=limit,
        task_manager=TaskManager(include_path=str(include) if include else None),
        bootstrap_iters=0,
    )["results"]
    scores = {}
    for task in tasks:
        found = next((results[task][name] for name in METRICS if name in results[task]), None)
        if found is None:
            raise SettingsError(
                f"The task {task!r} reports no accuracy, but {sorted(results[task])}. Choose tasks "
                "of multiple choice."
            )
        scores[task] = 100 * found
    return {"average": statistics.mean(scores.values()), **scores}


def zero_shot_task(
    *,
    model: str,
    tasks: list[str],
    include: Path | None,
    calibration: Path | None,
    context_length: int,
    samples: int,
    limit: int | None,
    batch_size: int,
    device: str | None,
    dtype: str,
) -> Task:
    """A set of zero-shot tasks for one model."""
    corpus = find_data(calibration, *LOCAL_TRAIN)
    return Task(
        metrics=("average", *tasks),
        num_calibration_samples=samples,
        budgets=(0.8, 0.7),
        target=Parameters,
        load=lambda: load(find_model(model), AutoModelForCausalLM, device=device, dtype=dtype),
        calibration=lambda: blocks(find_model(model), texts_of(corpus, "train"), context_length),
        score=lambda network, tokenizer: zero_shot_scores(
            network, tokenizer, tasks, include=include, limit=limit, batch_size=batch_size
        ),
        conditions={
            "model": model,
            "tasks": tasks,
            "scored on": "all examples" if limit is None else f"the first {limit} of each task",
            "calibrated on": f"{samples} blocks of {context_length} tokens of "
            f"{corpus.name if corpus else 'WikiText-2 train'}",
            "dtype": dtype,
        },
    )


def main(
    model: Annotated[str, typer.Option(help="A folder, a name below models/, or a Hub name.")],
    task: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable. Default: {', '.join(DEFAULT_TASKS)}.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(help="Folder with task files (YAML) of one's own.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text to calibrate on; default WikiText-2 train.")
    ] = None,
    context_length: Annotated[int, typer.Option(min=2, help="Tokens to calibrate on.")] = 2048,
    method: options.Methods = None,
    budget: options.Budgets = None,
    seed: options.Seeds = None,
    effort: options.Effort = None,
    allocation: options.Allocation = None,
    finish: options.Finish = None,
    limit: options.Limit = None,
    samples: options.Samples = 128,
    batch_size: options.BatchSize = 8,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    output: options.Output = Path("results/zero_shot"),
) -> None:
    """Measure, tabulate and draw."""
    make = partial(
        zero_shot_task,
        model=model,
        tasks=list(task or DEFAULT_TASKS),
        include=include,
        calibration=calibration,
        context_length=context_length,
        samples=samples,
        limit=limit,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    run(
        "zero_shot",
        {"zero-shot": make},
        Grid(method, seed or [0], budget),
        output,
        settings=options.settings_of(effort, allocation, finish),
    )


if __name__ == "__main__":
    typer.run(main)
