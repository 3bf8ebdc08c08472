"""A sentence encoder, dense and pruned, in torch, ONNX Runtime and OpenVINO, in float32 and int8.

    python benchmarks/runtimes.py GLUE --output results/runtimes

GLUE is a folder with STS-B: training sentences calibrate, its dev set scores. Speed-ups are over
the dense model in the same runtime and type: medians of ratios of interleaved runs, on one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoTokenizer
from transformers.exporters import ExportedModel

import stat_prune
from onnx_speed import random_batch, ratio, timed, write
from stat_prune.cli.demo.demo_data import find_sentence_encoder
from stat_prune.evaluation import read_glue
from stat_prune.exporting import export
from stat_prune.exporting.sentence_pooling import with_pooling

FORMS = [("onnx", "f32"), ("onnx", "int8"), ("openvino", "f32"), ("openvino", "int8")]

Network = Callable[..., Any]


def spearman(network: Network, tokenizer: Any, pairs: Any, batch_size: int = 32) -> float:
    """Correlation of cosines with judgements; batches are of sentences of like length."""
    sentences = [sentence for pair in pairs.texts for sentence in pair]
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    vectors: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [sentences[i] for i in chosen], padding=True, truncation=True, return_tensors="pt"
        )
        found = network(**batch)["sentence_embedding"]
        vectors |= dict(zip(chosen, torch.as_tensor(found), strict=True))
    first, second = (torch.stack([vectors[i] for i in range(k, len(order), 2)]) for k in (0, 1))
    cosines = torch.cosine_similarity(first, second).numpy()
    return float(spearmanr(cosines, np.asarray(pairs.labels)).statistic)


def opened(folder: Path) -> Network:
    """An exported folder in its runtime, on one thread."""
    if (folder / "model.onnx").exists():
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return ExportedModel.from_pretrained(folder, session_options=options)
    return ExportedModel.from_pretrained(folder, config={"INFERENCE_NUM_THREADS": 1})


def mebibytes(folder: Path) -> float:
    """Of the graph and its weights."""
    suffixes = (".onnx", ".data", ".xml", ".bin")
    return sum(f.stat().st_size for f in folder.iterdir() if f.suffix in suffixes) / 2**20


def main(
    glue: Annotated[Path, typer.Argument(help="The folder that holds stsb.")],
    output: Annotated[Path, typer.Option(help="Folder for runtimes.json.")] = Path(
        "results/runtimes"
    ),
    macs: Annotated[float, typer.Option(help="Kept fraction of MACs.")] = 0.5,
    samples: Annotated[int, typer.Option(help="Sentences that pruning is calibrated on.")] = 1024,
    ranges: Annotated[int, typer.Option(help="Sentences that OpenVINO's int8 sees.")] = 300,
    limit: Annotated[int | None, typer.Option(help="Pairs of dev that are scored.")] = None,
    batch_size: int = 8,
    seq_length: int = 128,
    rounds: Annotated[int, typer.Option(help="Counted rounds of the interleaved timing.")] = 15,
) -> None:
    """Export, score and time them all."""
    torch.set_num_threads(1)
    source = find_sentence_encoder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    train = [sentence for pair in read_glue("stsb", glue, split="train").texts for sentence in pair]
    dev = read_glue("stsb", glue, split="dev").spread(limit)
    record: dict[str, Any] = {"macs_kept": macs, "batch": [batch_size, seq_length]}
    networks: dict[tuple[str, ...], Network] = {}
    batch = random_batch(batch_size, seq_length)
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        dense = stat_prune.load(source)
        result = stat_prune.prune(
            dense,
            train,
            tokenizer=tokenizer,
            target=stat_prune.MACs(macs, seq_length=20),
            num_calibration_samples=samples,
        )
        result.save(Path(place) / "pruned")
        models = {"dense": dense, "pruned": stat_prune.load(Path(place) / "pruned")}
        for name, model in models.items():
            networks["torch", "f32", name] = with_pooling(model)[0]
            for to, type in FORMS:
                folder = Path(place) / f"{name}-{to}-{type}"
                options = {"calibration": train[:ranges]} if (to, type) == FORMS[-1] else {}
                export(model, folder, to, tokenizer=tokenizer, type=type, **options)
                networks[to, type, name] = opened(folder)
                record[f"{to} {type} {name}"] = {"mebibytes": mebibytes(folder)}
        seconds = timed([partial(network, **batch) for network in networks.values()], rounds)
        times = dict(zip(networks, seconds, strict=True))
        for (to, type, name), network in networks.items():
            row = record.setdefault(f"{to} {type} {name}", {})
            row["spearman"] = spearman(network, tokenizer, dev)
            row["speed_up_by_pruning"] = ratio(times[to, type, "dense"], times[to, type, name])
            row["speed_up_over_dense_torch"] = ratio(
                times["torch", "f32", "dense"], times[to, type, name]
            )
    write(record, output / "runtimes.json")


if __name__ == "__main__":
    typer.run(main)
