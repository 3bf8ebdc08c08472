"""Time and memory of pruning a checkpoint layer by layer, against layers and against tokens.

    python benchmarks/layer_at_a_time.py                 # small shapes, a few minutes
    python benchmarks/layer_at_a_time.py --tiny-llama    # one model of TinyLlama's shape, 1.1B

Random weights of Llama's architecture, bfloat16, saved in shards; random tokens. Every run is a
process of its own, so that its peak resident set is its own; times are of the processor. Writes
layer_at_a_time.json and .md, and without --tiny-llama a figure, into --output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import stat_prune
from stat_prune.reporting.plotting.style import Figure, figure

Record = dict[str, Any]

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 2000,
}
TINY_LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def save_model(folder: Path, shape: dict[str, int], num_layers: int) -> None:
    """A checkpoint with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, num_hidden_layers=num_layers, max_position_embeddings=2048)
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")


def prune(folder: Path, samples: int, tokens: int, kept: float, method: str) -> Record:
    """One run, in this process; its report in figures."""
    config = LlamaConfig.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shape = (samples, tokens)
    ids = torch.randint(0, config.vocab_size, shape, generator=generator)
    start = time.process_time()
    # TemporaryDirectory keeps the result on the disk of the checkpoint, where there is space.
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        report = stat_prune.prune_checkpoint(
            folder,
            [{"input_ids": row} for row in ids],
            target=stat_prune.Parameters(kept),
            output_dir=Path(place) / "out",
            method=method,
            batch_size=1,
            progress=False,
        ).report
    heads = config.num_attention_heads * config.head_dim
    return {
        "layers": config.num_hidden_layers,
        "samples": samples,
        "tokens": tokens,
        "method": method,
        "kept": report.after.block_parameters / report.before.block_parameters,
        "seconds": time.process_time() - start,
        "by stage": report.seconds,
        "peak": report.peak_memory,
        "predicted peak": report.predicted_peak_memory,
        "model": report.before.bytes,
        "Gram matrices of a layer": 8 * (heads**2 + config.intermediate_size**2),
        "states": samples * tokens * config.hidden_size * 2,
        "threads": torch.get_num_threads(),
    }


def measured(folder: Path, samples: int, tokens: int, kept: float, method: str) -> Record:
    """One run in a process of its own."""
    call = ["--cell", json.dumps([str(folder), samples, tokens, kept, method])]
    done = subprocess.run(
        [sys.executable, __file__, *call], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def markdown(records: list[Record]) -> str:
    """The records as a table; times are relative to the first."""
    lines = [
        "| layers | tokens | processor time, to the first | peak MiB | predicted | model MiB "
        "| Gram matrices of a layer | states |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in records:
        sizes = ("peak", "predicted peak", "model", "Gram matrices of a layer", "states")
        mebibytes = " | ".join(f"{row[name] / 2**20:.0f}" for name in sizes)
        ratio = row["seconds"] / records[0]["seconds"]
        count = f"{row['samples']} x {row['tokens']}"
        lines.append(f"| {row['layers']} | {count} | {ratio:.2f} | {mebibytes} |")
    return "\n".join(lines) + "\n"


def drawn(by_layers: list[Record], by_tokens: list[Record]) -> Figure:
    """Time against layers and against tokens."""
    fig = figure(9, 4)
    panels = fig.subplots(1, 2)
    points = (
        ("layers", [(row["layers"], row["seconds"]) for row in by_layers]),
        ("tokens", [(row["samples"] * row["tokens"], row["seconds"]) for row in by_tokens]),
    )
    for panel, (name, pairs) in zip(panels, points, strict=True):
        counts, seconds = zip(*pairs, strict=True)
        panel.plot(counts, [one / seconds[0] for one in seconds], marker="o")
        panel.set(
            xlabel=name, ylabel="processor time, to the first", xlim=(0, None), ylim=(0, None)
        )
        panel.grid(alpha=0.3)
    return fig


def main(
    layers: Annotated[list[int] | None, typer.Option(help="Numbers of layers.")] = None,
    samples: Annotated[list[int] | None, typer.Option(help="Numbers of sequences.")] = None,
    tokens: Annotated[int, typer.Option(help="A sequence.")] = 128,
    kept: Annotated[float, typer.Option(help="Fraction of the parameters.")] = 0.7,
    method: Annotated[str, typer.Option(help="stat, or id-unweighted: without probes.")] = "stat",
    tiny_llama: Annotated[bool, typer.Option("--tiny-llama", help="22 layers, 16 x 512.")] = False,
    output: Annotated[Path, typer.Option(help="Folder.")] = Path("results/layer_at_a_time"),
    cell: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure runs of `prune_checkpoint`."""
    if cell is not None:
        folder, *arguments = json.loads(cell)
        print(json.dumps(prune(Path(folder), *arguments)))
        return
    output.mkdir(parents=True, exist_ok=True)
    depths, sizes = layers or [4, 8, 12, 16], samples or [32, 64, 96, 128]
    shape = TINY_LLAMA if tiny_llama else SMALL
    if tiny_llama:
        depths, sizes, tokens = [22], [16], 512
    cells = [(depth, sizes[-1]) for depth in depths] + [(depths[0], size) for size in sizes[:-1]]
    found: dict[tuple[int, int], Record] = {}
    with tempfile.TemporaryDirectory(dir=output) as place:
        for depth, size in tqdm(cells, unit="run"):
            folder = Path(place) / f"model-{depth}"
            if not folder.exists():
                save_model(folder, shape, depth)
            found[depth, size] = measured(folder, size, tokens, kept, method)
    records = [found[depths[0], size] for size in sizes]
    by_layers = [found[depth, sizes[-1]] for depth in depths]
    everything = [*records, *by_layers[1:]]
    (output / "layer_at_a_time.json").write_text(json.dumps(everything, indent=2) + "\n")
    (output / "layer_at_a_time.md").write_text(markdown(everything))
    if not tiny_llama:
        drawn(by_layers, records).savefig(output / "layer_at_a_time.png", dpi=150)
    print(markdown(everything))


if __name__ == "__main__":
    typer.run(main)
