"""Whether a GPU prunes to what a CPU prunes to: units, weights, outputs and scores of real models.

    STAT_PRUNE_DATA=... python benchmarks/agreement.py --device cuda
    python benchmarks/agreement.py --device cpu --task tiny      # to try the script itself

The same model, examples and seed on both. Sizes and units may differ where rounding decides between
two that are as good; weights are compared where they are the same ones.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM

import stat_prune
from harness import options, records
from harness.cells import sizes, without_place
from harness.inputs import drawn
from harness.publishing import publishing
from harness.records import Record
from harness.shapes import TINY
from harness.task import Task
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.measuring.timing import device_name
from tasks import TASKS, named

UNITS, WEIGHTS = "units in common", "weights apart (millionths)"
OUTPUTS, BESIDE = "divergence of the two (millionths)", "divergence from dense (millionths)"
MILLION = 1e6


def tiny() -> Task:
    """A Llama of random weights on random tokens, which needs no data."""

    def model() -> LlamaForCausalLM:
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**TINY, num_hidden_layers=2)).eval()

    def rows(seed: int) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(TINY["vocab_size"], (64, 24), generator=generator)
        return [{"input_ids": row} for row in ids]

    return Task(
        metrics=("weight",),
        num_calibration_samples=48,
        budgets=(0.6,),
        target=stat_prune.Parameters,
        load=lambda: (model(), None),
        calibration=lambda: rows(0),
        score=lambda network, _: {"weight": float(network.lm_head.weight.detach().norm())},
        unseen=lambda: rows(1),
    )


def compared(
    name: str, task: Task, budget: float | None, device: str, precision: str, seed: int
) -> Record:
    """One model at one budget, by both."""
    start = time.perf_counter()
    dense, tokenizer = task.load()
    kept = task.budgets[len(task.budgets) // 2] if budget is None else budget
    examples = task.calibration()
    on_cpu, on_device = (
        stat_prune.prune(
            copy.deepcopy(dense).to(place),
            examples,
            tokenizer=tokenizer,
            target=task.target(kept),
            num_calibration_samples=task.num_calibration_samples,
            precision=precision,
            seed=seed,
            progress=False,
        )
        for place in ("cpu", device)
    )
    # Both on the CPU: what was chosen is compared, not how a device multiplies.
    ours, theirs = on_cpu.model, on_device.model.to("cpu")
    batches = drawn(dense, tokenizer, (task.unseen or task.calibration)(), 64).batches
    found = {
        UNITS: units_in_common(on_cpu.plan, on_device.plan),
        WEIGHTS: largest_difference(ours, theirs),
        OUTPUTS: MILLION * distance(ours, theirs, batches, output_distance),
        BESIDE: MILLION * distance(dense, ours, batches, output_distance),
        f"{task.metric}, CPU": task.score(ours, tokenizer)[task.metric],
        f"{task.metric}, {torch.device(device).type}": task.score(theirs, tokenizer)[task.metric],
    }
    key = f"{kept:g}"
    return {
        "task": name,
        "method": "stat",
        "metric": UNITS,
        "metrics": [one for one, value in found.items() if value is not None],
        "dense": None,
        "scores": {key: found[UNITS]},
        "details": {key: found},
        "sizes": {key: sizes(on_device)},
        "refused": None,
        "seconds": time.perf_counter() - start,
        "settings": without_place(on_device.report.settings),
        "versions": on_device.report.versions,
    }


def units_in_common(first: dict[str, list[int]], second: dict[str, list[int]]) -> float:
    """Of all units that either keeps, the share that both keep."""
    both = sum(len(set(first[block]) & set(second[block])) for block in first)
    return both / sum(len(set(first[block]) | set(second[block])) for block in first)


def largest_difference(first: torch.nn.Module, second: torch.nn.Module) -> float | None:
    """Of any weight, in millionths of the largest entry of its matrix; None where shapes differ."""
    differences = []
    for ours, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        if ours.shape != theirs.shape:
            return None
        if not ours.is_floating_point():
            continue
        largest = ours.abs().max().clamp(min=torch.finfo(ours.dtype).tiny)
        differences.append(float((ours - theirs).abs().max() / largest))
    return MILLION * max(differences)


def main(
    task: Annotated[
        list[str] | None,
        typer.Option(help=f"Of tiny, {', '.join(TASKS)}, or KIND=MODEL. Default: stories."),
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Default: the middle of the task's.")] = None,
    precision: Annotated[str, typer.Option(help="auto, float32 or float64.")] = "auto",
    device: options.Device = None,
    seed: Annotated[int, typer.Option(help="Of the calibration set.")] = 0,
    output: options.Output = Path("results/agreement"),
) -> None:
    """Prune on both, compare, tabulate."""
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tasks = dict(("tiny", tiny) if line == "tiny" else named(line) for line in task or ["stories"])
    with publishing("agreement", output, len(tasks)) as add:
        for name, make in tasks.items():
            one = make()
            conditions = {
                **one.conditions,
                "device": device_name(torch.device(place)),
                "precision": precision,
            }
            path = output / f"{name}-agreement-{seed}.json"
            record = records.read(path, conditions)
            if record is None:
                shared = {"benchmark": "agreement", "seed": seed, "conditions": conditions}
                record = shared | compared(name, one, budget, place, precision, seed)
                records.write(path, record)
            add(record)


if __name__ == "__main__":
    typer.run(main)
