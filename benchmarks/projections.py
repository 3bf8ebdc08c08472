"""What bounds a choice of channels: the same ranks by the best projection of the activations.

    STAT_PRUNE_DATA=... python benchmarks/projections.py --task encoder --budget 0.5 --budget 0.4

The default method prunes to a budget. Then, in the dense model, the input of every consumer is
projected onto as many directions as channels were kept there: those of the singular value
decomposition, of the activations weighted by what the consumer reads, as the choice is. No k
channels and no correction leave a smaller error of these activations, and every direction takes
all of the channels, so that nothing becomes faster: a bound, not a method.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm.auto import tqdm
from transformers import PreTrainedModel

import stat_prune
from harness import options
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.families import find_blocks
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.statistics import BlockStatistics, statistics_of
from stat_prune.model.projections import projection
from stat_prune.reporting.result import PruningResult
from tasks import TASKS

Record = dict[str, Any]


def measure(name: str, budgets: list[float], seed: int) -> list[Record]:
    """Scores of the pruned and of the projected model at each budget."""
    task = TASKS[name]()
    model, tokenizer = task.load()
    data = task.calibration()
    results = stat_prune.prune_family(
        model,
        data,
        tokenizer=tokenizer,
        targets=[task.target(kept) for kept in budgets],
        num_calibration_samples=task.num_calibration_samples,
        seed=seed,
        progress=False,
    )
    calibration = calibration_set_for(
        model,
        data,
        tokenizer,
        num_samples=task.num_calibration_samples,
        max_seq_length=None,
        batch_size=32,
        seed=seed,
    )
    blocks = find_blocks(model)
    moments = collect_moments(model, blocks, calibration.batches)
    statistics = statistics_of(model.base_model, blocks, moments)

    def score(network: PreTrainedModel) -> float:
        return task.score(network, tokenizer)[task.metric]

    return [
        {
            "task": name,
            "metric": task.metric,
            "dense": score(model),
            "kept": kept,
            "stat": score(result.model),
            "projected": score(projected(model, statistics, result)),
        }
        for kept, result in zip(budgets, results, strict=True)
    ]


def projected(
    model: PreTrainedModel, statistics: list[BlockStatistics], result: PruningResult
) -> PreTrainedModel:
    """The dense model with every consumer's input projected to the rank of what was kept of it."""
    network = copy.deepcopy(model)
    for one in statistics:
        rank = len(result.plan[one.block.name]) * one.block.unit_size
        scale = one.weight.norm(dim=0).clamp_min(1e-30)
        vectors = torch.linalg.eigh(one.gram * scale * scale[:, None]).eigenvectors[:, -rank:]
        weight = (one.weight / scale) @ vectors @ vectors.T * scale
        consumer = projection(network.base_model, one.block.consumer)
        bias = consumer.bias
        with torch.no_grad():
            consumer.weight.copy_(weight)
            if one.mean is not None and bias is not None:
                bias.add_(((one.weight - weight) @ one.mean).to(bias))
    return network


def markdown(records: list[Record]) -> str:
    """The records as a table."""
    lines = [
        "| task (metric, dense) | kept | stat | projections of the same ranks |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['task']} ({row['metric']}, {row['dense']:.4f}) | {row['kept']:g} | "
            f"{row['stat']:.4f} | {row['projected']:.4f} |"
            for row in records
        ),
    ]
    return "\n".join(lines) + "\n"


def main(
    task: Annotated[list[str], typer.Option(help=f"Of {', '.join(TASKS)}.")],
    budget: options.Budgets = None,
    output: options.Output = Path("results/projections"),
    seed: int = 0,
) -> None:
    """Measure and tabulate."""
    budgets = list(budget or [0.6, 0.5, 0.4, 0.3])
    records = [row for name in tqdm(task, unit="task") for row in measure(name, budgets, seed)]
    output.mkdir(parents=True, exist_ok=True)
    (output / "projections.json").write_text(json.dumps(records, indent=2) + "\n")
    (output / "projections.md").write_text(markdown(records))
    print(markdown(records))


if __name__ == "__main__":
    typer.run(main)
