"""The second stage and the finish beside the first, and beside plain fine-tuning: what time buys.

    STAT_PRUNE_DATA=... python benchmarks/vib.py --task mrpc --kept 0.5 --steps 60

Every (task, method, kept fraction, steps, seed) is one record on disk; a run that is broken off
goes on where it was. Word embeddings are frozen and the learning rate is 1e-4, as when the
checkpoints of GLUE were made; 1e-3 for the Llama of 656,000 parameters. Steps count batches of
`--batch-size`; methods with two rounds of training spend half in each, and masks alone a sixteenth,
as by default. A finish reads as many sequences as the steps do (after masks, as those of
the masks), in steps of its own.

PFLOP are of the whole second stage: the matrix products of the student forwards and backwards, of
the teacher forwards and of the correction after the cut, on batches as they are, padding included;
attention's count, and scoring does not. They are counted while it runs (`FlopCounterMode`). CPU
seconds are of the same.

Scores are of the dev split. To choose between settings, score on training examples that no method
has seen instead: `--held-out 1000`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

from stat_prune.evaluation.glue import GLUE_TASKS
from stat_prune.pipeline.accounting import measure as measure_size
from tasks import STORIES
from vib_methods import METHODS, Cell

Record = dict[str, Any]


def measure(method: str, cell: Cell) -> Record:
    """One model and its score."""
    model, settings, spent = METHODS[method](cell)
    known = GLUE_TASKS.get(cell.name)
    length = known.average_length if known else None
    before, after = (measure_size(one, length or 1.0) for one in (cell.model, model))
    kept = after.block_macs / before.block_macs
    if not known:
        kept = after.block_parameters / before.block_parameters
    return {
        "task": cell.name,
        "method": method,
        "kept": cell.kept,
        "steps": cell.steps,
        "batch_size": cell.fields["batch_size"],
        "examples": len(cell.data),
        "held_out": len(cell.held),
        "seed": cell.seed,
        "metric": cell.task.metric,
        "dense": cell.dense,
        "score": cell.score(model),
        "kept_cost": kept,
        **spent,
        "settings": settings,
    }


def record_of(path: Path, method: str, make: Callable[[], Cell]) -> Record:
    """The record on disk, or a new measurement that is then on disk."""
    if path.exists():
        return json.loads(path.read_text())
    record = measure(method, make())
    partial = path.with_suffix(".partial")  # a record on disk is a whole one
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)
    return record


def priced(task: str) -> str:
    """What a fraction is of."""
    return "parameters" if task == STORIES else "MACs"


def fields_of(given: list[str]) -> dict[str, Any]:
    """Names and values of `--field`."""
    try:
        return {name: json.loads(value) for name, value in (one.split("=") for one in given)}
    except ValueError as error:
        message = f"{given} are not like hidden_weight=0.5: {error}"
        raise typer.BadParameter(message, param_hint="--field") from error


def markdown(records: list[Record], fields: list[str]) -> str:
    """A table a task and kept fraction."""
    parts = []
    for task, kept in dict.fromkeys((record["task"], record["kept"]) for record in records):
        rows = [row for row in records if (row["task"], row["kept"]) == (task, kept)]
        first = rows[0]
        place = f"{first['held_out']} held-out training examples" if first["held_out"] else "dev"
        parts += [
            f"**{task}** at {kept:g} of the blocks' {priced(task)}: {first['metric']} on {place}, "
            f"dense {first['dense']:.4f}; {first['steps']} steps of {first['batch_size']} from "
            f"{first['examples']} examples, seed {', '.join([str(first['seed']), *fields])}.",
            "",
            "| method | score | kept | PFLOP | CPU seconds |",
            "| --- | --- | --- | --- | --- |",
        ]
        parts += [
            f"| {row['method']} | {row['score']:.4f} | {row['kept_cost']:.4f} | "
            f"{row['flops'] / 1e15:.4f} | {row['cpu_seconds']:.0f} |"
            for row in rows
        ]
        parts.append("")
    return "\n".join(parts)


def main(
    task: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join([*GLUE_TASKS, STORIES])}.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A folder, a name below models/, or a Hub name; {task} is replaced.")
    ] = "minilm-{task}",
    method: Annotated[list[str] | None, typer.Option(help=f"Of {'; '.join(METHODS)}.")] = None,
    kept: Annotated[list[float] | None, typer.Option(help="Kept fractions.")] = None,
    steps: Annotated[int, typer.Option(help="Of training, in all.")] = 400,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    limit: Annotated[int | None, typer.Option(help="Training examples; default: all.")] = None,
    held_out: Annotated[
        int, typer.Option(help="Score on so many training examples set apart, not on dev.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    field: Annotated[
        list[str] | None, typer.Option(help="Of VIBConfig, for all methods: hidden_weight=0.5.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for records and table.")] = Path(
        "results/vib"
    ),
) -> None:
    """Measure and tabulate."""
    given = field or []
    fields = fields_of(given)
    output.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    grid = [(name, fraction) for name in task or ["mrpc"] for fraction in kept or [0.5, 0.3]]
    methods = method or list(METHODS)
    with tqdm(total=len(grid) * len(methods), desc="vib") as bar:
        for name, fraction in grid:

            @cache  # loaded when a record is missing, and once for all methods
            def make(name: str = name, fraction: float = fraction) -> Cell:
                return Cell(
                    name,
                    output,
                    model=model.format(task=name),
                    kept=fraction,
                    steps=steps,
                    batch_size=batch_size,
                    limit=limit,
                    held_out=held_out,
                    seed=seed,
                    fields=fields,
                )

            for chosen in methods:
                sizes = f"{steps}x{batch_size}-{limit or 'all'}-{held_out}-{seed}"
                label = "-".join([chosen, *given]).replace(", ", "-").replace(" ", "_")
                path = output / f"{name}-{fraction:g}-{sizes}-{label}.json"
                records.append(record_of(path, chosen, make))
                bar.update()
    table = markdown(records, given)
    (output / "vib.md").write_text(table)
    print(table)


if __name__ == "__main__":
    typer.run(main)
