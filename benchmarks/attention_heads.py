"""Do criteria that look at attention choose better heads than chance, and than STAT?

    STAT_PRUNE_DATA=... python benchmarks/attention_heads.py

Only heads leave, 10 to 70 % of them; neurons stay whole. Every criterion with and without the
least-squares correction, beside heads drawn at random (five seeds) and STAT's own choice. A second
table asks whether the heads that STAT removes attend to other things than those that it keeps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

import stat_prune
from retention import markdown, record_of
from stat_prune import MACs
from stat_prune.glue_tasks import GLUE_TASKS
from stat_prune.methods import ATTENTION_CRITERIA
from stat_prune.plotting import score_curves
from stat_prune.probing import compare_removed, head_statistics
from tasks import TASKS, Task

REMOVED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
RANDOM_SEEDS = range(5)
METHODS = {
    "stat": (0,),
    "random": RANDOM_SEEDS,
    "random-corrected": RANDOM_SEEDS,
    **dict.fromkeys(ATTENTION_CRITERIA, (0,)),
    **{f"{name}-corrected": (0,) for name in ATTENTION_CRITERIA},
}
#: Sequences that attention is looked at on.
PROBED = 512


def heads_only(name: str) -> Task:
    """A task whose targets are of heads alone."""
    length = GLUE_TASKS[name].average_length
    return replace(TASKS[name](), target=lambda kept: MACs({"heads": kept}, seq_length=length))


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
    method: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(METHODS)}.")] = None,
    removed: Annotated[list[float] | None, typer.Option(help="Fractions of heads.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for records, tables and figure.")] = Path(
        "results/attention_heads"
    ),
    seed: Annotated[int, typer.Option(help="Of the comparison of removed heads.")] = 0,
) -> None:
    """Measure and tabulate; a run that is broken off goes on where it was."""
    output.mkdir(parents=True, exist_ok=True)
    kept = tuple(round(1 - fraction, 3) for fraction in removed or REMOVED)
    tasks = task or ["sst2", "mrpc"]
    cells = [
        (name, chosen, number)
        for name in tasks
        for chosen in method or METHODS
        for number in METHODS[chosen]
    ]
    records = [
        record_of(output, name, heads_only(name), chosen, kept, number)
        for name, chosen, number in tqdm(cells, desc="heads")
    ]
    rows = [
        row
        for name in tqdm(tasks, desc="what removed heads attend to")
        for fraction in ({"heads": 0.5}, 0.5)
        for row in probe(name, MACs(fraction, seq_length=GLUE_TASKS[name].average_length), seed)
    ]
    table = markdown(records) + "\n" + comparison_table(rows)
    (output / "attention_heads.md").write_text(table)
    (output / "comparison.json").write_text(json.dumps(rows, indent=2) + "\n")
    score_curves(records, xlabel="kept fraction of heads").savefig(
        output / "attention_heads.png", dpi=150
    )
    print(table)


if __name__ == "__main__":
    typer.run(main)
