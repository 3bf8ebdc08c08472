"""What pruning costs and what it gains on a BERT-base-shaped encoder, side by side in one process.

    python benchmarks/speed.py --output results/speed

Random weights: time depends on shapes only. Figures are ratios of medians of interleaved runs.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm.auto import tqdm
from transformers import BertConfig, BertModel

import stat_prune
from stat_prune.evaluation.latency import median_latencies


def random_inputs(samples: int, length: int, vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    """Token ids without padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, vocabulary, (samples, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def forward(model: BertModel, inputs: dict[str, torch.Tensor], batch_size: int) -> None:
    """One plain forward over all inputs."""
    with torch.no_grad():
        for start in range(0, len(inputs["input_ids"]), batch_size):
            model(**{name: value[start : start + batch_size] for name, value in inputs.items()})


def main(
    output: Annotated[Path, typer.Option(help="Folder for speed.json and speed.md.")] = Path(
        "results/speed"
    ),
    layers: Annotated[int, typer.Option(help="12 is BERT-base.")] = 12,
    samples: Annotated[int, typer.Option(help="Calibration sequences of 64 tokens.")] = 512,
    macs: Annotated[list[float] | None, typer.Option(help="Kept fractions of MACs.")] = None,
    round_to: Annotated[int, typer.Option(help="Multiples for numbers of neurons.")] = 1,
    repeats: Annotated[int, typer.Option(help="Counted rounds of the interleaved timing.")] = 7,
    seed: int = 0,
) -> None:
    """Time `prune` against a plain forward, and the pruned models against the dense one."""
    torch.manual_seed(seed)
    model = BertModel(BertConfig(num_hidden_layers=layers)).eval()
    inputs = random_inputs(samples, 64, model.config.vocab_size, seed)
    fractions = macs or [0.75, 0.5, 0.25]
    targets = [stat_prune.MACs(fraction, seq_length=128) for fraction in fractions]
    rows = [{name: value[i] for name, value in inputs.items()} for i in range(samples)]

    def pruned(*targets: stat_prune.MACs) -> list[stat_prune.PruningResult]:
        return stat_prune.prune_family(
            model,
            rows,
            targets=targets,
            num_calibration_samples=samples,
            round_to=round_to,
            seed=seed,
            progress=False,
        )

    ratios = []
    for _ in tqdm(range(3), desc="pruning beside a plain forward"):
        start = time.perf_counter()
        forward(model, inputs, 32)
        between = time.perf_counter()
        (result,) = pruned(targets[0])
        ratios.append((time.perf_counter() - between) / (between - start))
    stages = result.report.seconds
    batch = random_inputs(32, 128, model.config.vocab_size, seed + 1)
    family = [result.model for result in pruned(*targets)]
    dense, *seconds = median_latencies([model, *family], batch, rounds=repeats)
    record = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "layers": layers,
        "calibration_samples": samples,
        "round_to": round_to,
        "prune_over_forward": statistics.median(ratios),
        "share_of_stages": {name: value / sum(stages.values()) for name, value in stages.items()},
        "speed_up": {
            f"{kept:g}": dense / value for kept, value in zip(fractions, seconds, strict=True)
        },
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "speed.json").write_text(json.dumps(record, indent=2) + "\n")
    table = markdown(record)
    (output / "speed.md").write_text(table)
    print(table)


def markdown(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    stages = ", ".join(f"{name} {share:.0%}" for name, share in record["share_of_stages"].items())
    lines = [
        f"`prune` took {record['prune_over_forward']:.2f} times one plain forward over the same "
        f"{record['calibration_samples']} x 64 tokens ({record['threads']} threads; {stages}).",
        "",
        "| kept MACs | speed-up, batch 32 x 128 tokens |",
        "| --- | --- |",
        *(f"| {name} | {ratio:.2f} |" for name, ratio in record["speed_up"].items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
