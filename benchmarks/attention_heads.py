"""Do criteria that look at attention choose better heads than chance, and than STAT?

    STAT_PRUNE_DATA=... python benchmarks/attention_heads.py

Only heads leave, 10 to 70 % of them; neurons stay whole. Every criterion with and without the
least-squares correction, beside heads drawn at random (five seeds) and STAT's own choice. Scores
are the dev split's accuracy and, with far less noise, the divergence of the output from the dense
model's on its texts. Another table counts the cells in which one is ahead of the other, and a third
asks whether the heads that STAT removes attend to other things than those that it keeps.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import stat_prune
from harness import options
from harness.cells import Grid, run
from harness.records import Record
from harness.task import Task
from stat_prune import MACs
from stat_prune.attention import compare_removed, head_statistics
from stat_prune.data.glue_tasks import GLUE_TASKS
from stat_prune.settings.methods import ATTENTION_CRITERIA
from tasks import TASKS

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
RANDOM = Grid(("random", "random-corrected"), range(5))
CHOSEN = ("stat", *ATTENTION_CRITERIA, *(f"{name}-corrected" for name in ATTENTION_CRITERIA))
#: Sequences that attention is looked at on.
PROBED = 512


def heads_only(name: str) -> Task:
    """A task whose targets are of heads alone; the divergence from the dense model is a score."""
    task, length = TASKS[name](), GLUE_TASKS[name].average_length

    @cache  # once for all methods
    def reference() -> Tensor:
        return scored(*task.load(), task.score)[1]

    def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        scores, found = scored(model, tokenizer, task.score)
        divergence = kl_div(found, reference(), log_target=True, reduction="batchmean")
        return {**scores, "divergence": float(divergence)}

    return replace(
        task,
        metrics=(*task.metrics, "divergence"),
        budgets=BUDGETS,
        target=lambda kept: MACs({"heads": kept}, seq_length=length),
        score=score,
    )


def scored(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, score: Callable[..., Any]
) -> tuple[dict[str, float], Tensor]:
    """The scores, and the logarithms of the probabilities that they came from, in float64."""
    logits: list[Tensor] = []
    with model.register_forward_hook(lambda _model, _args, output: logits.append(output.logits)):
        scores = score(model, tokenizer)
    return dict(scores), torch.cat(logits).double().log_softmax(-1)


def standings(records: Sequence[Record]) -> str:
    """In how many cells one is ahead of the other or even, as Markdown."""
    lines = [
        "| task | score | criterion, random | corrected, not | stat, criterion | stat, corrected |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task in dict.fromkeys(row["task"] for row in records):
        rows = [row for row in records if row["task"] == task]
        for metric in rows[0]["metrics"]:
            found = means(rows, metric, -1 if metric == "divergence" else 1)
            pairs = [
                [(name, "random") for name in ATTENTION_CRITERIA],
                [(f"{name}-corrected", name) for name in ATTENTION_CRITERIA],
                [("stat", name) for name in ATTENTION_CRITERIA],
                [("stat", f"{name}-corrected") for name in ATTENTION_CRITERIA],
            ]
            counts = [
                [
                    found[one][kept] >= found[other][kept]
                    for one, other in group
                    for kept in found[one]
                ]
                for group in pairs
            ]
            cells = " | ".join(f"{sum(won)} of {len(won)}" for won in counts)
            lines.append(f"| {task} | {metric} | {cells} |")
    return "\n".join(lines) + "\n"


def means(records: Sequence[Record], metric: str, sign: int) -> dict[str, dict[str, float]]:
    """The mean over seeds, by method and kept fraction, times `sign`."""
    return {
        method: {
            kept: sign
            * statistics.mean(
                row["details"][kept][metric] for row in records if row["method"] == method
            )
            for kept in next(row for row in records if row["method"] == method)["scores"]
        }
        for method in dict.fromkeys(row["method"] for row in records)
    }


def probe(name: str, target: stat_prune.MACs, seed: int) -> list[dict[str, Any]]:
    """What the heads that STAT removes attend to, beside those that it keeps."""
    task = TASKS[name]()
    model, tokenizer = task.load()
    texts = task.calibration()
    statistics = head_statistics(
        model, texts, tokenizer=tokenizer, num_samples=PROBED, seed=seed, progress=False
    )
    plan = stat_prune.prune(
        model,
        texts,
        tokenizer=tokenizer,
        target=target,
        num_calibration_samples=task.num_calibration_samples,
        seed=seed,
        passes=1,  # a second one changes the correction and not the choice
        progress=False,
    ).plan
    compared = compare_removed(statistics, plan, seed=seed)
    return [{"task": name, "target": repr(target)} | asdict(one) for one in compared]


def comparison_table(rows: list[dict[str, Any]]) -> str:
    """Comparisons as Markdown, a table a plan."""
    parts = []
    for task, target in dict.fromkeys((row["task"], row["target"]) for row in rows):
        own = [row for row in rows if (row["task"], row["target"]) == (task, target)]
        parts += [
            f"**{task}**, {target}: {own[0]['num_removed']} heads removed, "
            f"{own[0]['num_kept']} kept",
            "",
            "| statistic | removed | kept | Cliff's delta | 95 % interval |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {row['statistic']} | {row['removed']:.3f} | {row['kept']:.3f} | "
                f"{row['effect']:+.2f} | {row['low']:+.2f} to {row['high']:+.2f} |"
                for row in own
            ),
            "",
        ]
    return "\n".join(parts)


def main(
    task: Annotated[list[str] | None, typer.Option(help="GLUE tasks.")] = None,
    budget: options.Budgets = None,
    output: options.Output = Path("results/attention_heads"),
    seed: Annotated[int, typer.Option(help="Of the criteria; of the bootstrap.")] = 0,
) -> None:
    """Measure, tabulate and draw; then compare the heads that STAT removes with those it keeps."""
    names = task or ["sst2", "mrpc"]
    tasks = {name: partial(heads_only, name) for name in names}
    drawn = replace(RANDOM, budgets=budget)
    run("attention_heads", tasks, Grid(CHOSEN, [seed], budget), output, drawn)
    cells = [
        (name, method, at)
        for name in names
        for grid, seeds in ((CHOSEN, [seed]), (RANDOM.methods, RANDOM.seeds))
        for method in grid
        for at in seeds
    ]
    counted = standings(
        [json.loads((output / f"{'-'.join(map(str, cell))}.json").read_text()) for cell in cells]
    )
    (output / "standings.md").write_text(counted, encoding="utf-8")
    print(counted)
    rows = [
        row
        for name in tqdm(names, desc="what removed heads attend to")
        for fraction in ({"heads": 0.5}, 0.5)
        for row in probe(name, MACs(fraction, seq_length=GLUE_TASKS[name].average_length), seed)
    ]
    table = comparison_table(rows)
    (output / "comparison.md").write_text(table, encoding="utf-8")
    (output / "comparison.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    typer.run(main)
