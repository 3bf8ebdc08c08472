"""Is the speed-up that is asked for the one that is got? A sentence encoder, asked and measured.

    STAT_PRUNE_DATA=... OMP_NUM_THREADS=1 python benchmarks/latency_targets.py --batch 1x32

Each pruned model is timed beside the dense one by `prune` itself and again after it, on other
tokens: by the clock that `prune` used and by the clock on the wall, which on a busy machine shows
the other programs too.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedModel

import stat_prune
from stat_prune.measuring.latency import Clock, forward_turns, undisturbed_clock
from tasks import TASKS


def timed_again(
    models: list[PreTrainedModel], batch: dict[str, torch.Tensor], rounds: int, clock: Clock
) -> dict[str, float]:
    """Median and quartiles of the first model's time by the second's."""
    with forward_turns(models, batch, clock) as turns:
        ratios = [dense / pruned for dense, pruned in islice(turns, rounds)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"speed_up": middle, "low": low, "high": high}


def main(
    output: Annotated[
        Path, typer.Option(help="Folder for latency_targets.json and latency_targets.md.")
    ] = Path("results/latency_targets"),
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")] = "encoder",
    speedup: Annotated[list[float] | None, typer.Option(help="Default: 1.5 and 2.")] = None,
    batch: Annotated[
        list[str] | None, typer.Option(help="Sequences x tokens. Default: 1x32 and 16x128.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Calibration sequences.")] = 256,
    rounds: Annotated[int, typer.Option(help="Of the second measurement, at 1x32.")] = 200,
    seed: int = 0,
) -> None:
    """Prune to speed-ups, and measure them again."""
    speedups, batches = speedup or [1.5, 2.0], batch or ["1x32", "16x128"]
    source = TASKS[task]()
    model, tokenizer = source.load()
    rows: list[dict[str, Any]] = []
    for shape in batches:
        batch_size, seq_length = map(int, shape.split("x"))
        start = time.perf_counter()
        results = stat_prune.prune_family(
            model,
            source.calibration(),
            targets=[
                stat_prune.Speedup(factor, batch_size=batch_size, seq_length=seq_length)
                for factor in speedups
            ],
            tokenizer=tokenizer,
            num_calibration_samples=samples,
            seed=seed,
            progress=False,
        )
        pruning_seconds = time.perf_counter() - start
        generator = torch.Generator().manual_seed(seed + 1)
        ids = torch.randint(model.config.vocab_size, (batch_size, seq_length), generator=generator)
        tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        count = max(15, round(rounds * 32 / (batch_size * seq_length)))
        for result in results:
            models, after, before = [model, result.model], result.report.after, result.report.before
            rows.append(
                {
                    "batch": shape,
                    **vars(result.report.speed),
                    "again": timed_again(models, tokens, count, undisturbed_clock(model.device)),
                    "again_by_wall_clock": timed_again(models, tokens, count, time.perf_counter),
                    "again_rounds": count,
                    "kept_macs": after.block_macs / before.block_macs,
                    "pruning_seconds_of_all": pruning_seconds,
                }
            )
            print(markdown({"rows": rows[-1:], "load": os.getloadavg()[0]}))
    record = {"task": task, "torch": torch.__version__, "load": os.getloadavg()[0], "rows": rows}
    output.mkdir(parents=True, exist_ok=True)
    (output / "latency_targets.json").write_text(json.dumps(record, indent=2) + "\n")
    (output / "latency_targets.md").write_text(markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """The record as Markdown."""

    def spread(found: dict[str, float]) -> str:
        return f"{found['speed_up']:.3f} ({found['low']:.3f} to {found['high']:.3f})"

    first = record["rows"][0]
    lines = [
        f"Speed-up over the dense model; in brackets the quartiles over rounds. {first['device']}, "
        f"threads: {first['threads']}, clock: {first['clock']}; load of the machine at the end "
        f"{record['load']:.1f}.",
        "",
        "| batch | asked | by the report | off | again | off | again, wall clock | kept MACs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        asked = row["asked"]
        off, off_again = (f"{found['speed_up'] / asked - 1:+.1%}" for found in (row, row["again"]))
        lines.append(
            f"| {row['batch']} | {asked:g} | {spread(row)} | {off} | {spread(row['again'])} | "
            f"{off_again} | {spread(row['again_by_wall_clock'])} | {row['kept_macs']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
