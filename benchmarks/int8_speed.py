"""What 8 bits gain beside pruning: a sentence encoder, dense and pruned, in float32 and in int8.

    python benchmarks/int8_speed.py texts.txt --output results/int8_speed

int8 is that of torchao: weights, and activations as they come. Figures are ratios of medians of
interleaved runs of compiled models, on one thread.
"""

from __future__ import annotations

import copy
import io
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from transformers import PreTrainedModel

from onnx_speed import encoders, random_batch, ratio, timed, write


def in_int8(model: PreTrainedModel) -> PreTrainedModel:
    """A quantized copy."""
    copied = copy.deepcopy(model)
    quantize_(copied, Int8DynamicActivationInt8WeightConfig())
    return copied


def mebibytes(model: PreTrainedModel) -> float:
    """Size of the saved weights, embeddings included."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell() / 2**20


def main(
    texts: Annotated[Path, typer.Argument(help="A text file, one calibration example a line.")],
    output: Annotated[Path, typer.Option(help="Folder for int8_speed.json.")] = Path(
        "results/int8_speed"
    ),
    macs: Annotated[float, typer.Option(help="Kept fraction of MACs.")] = 0.5,
    batch_size: int = 8,
    seq_length: int = 128,
    rounds: Annotated[int, typer.Option(help="Counted rounds of the interleaved timing.")] = 15,
) -> None:
    """Measure sizes, speed-ups over the dense float32 model, and what rounding changes."""
    torch.set_num_threads(1)
    dense, pruned = encoders(texts, macs, seq_length)
    models = {"dense": dense, "dense_int8": in_int8(dense)}
    models |= {"pruned": pruned, "pruned_int8": in_int8(pruned)}
    batch = random_batch(batch_size, seq_length)
    with torch.no_grad():
        states = {name: model(**batch)[0] for name, model in models.items()}
        runs = [partial(torch.compile(model, dynamic=False), **batch) for model in models.values()]
        times = dict(zip(models, timed(runs, rounds), strict=True))
    record: dict[str, Any] = {"macs_kept": macs, "batch": [batch_size, seq_length]}
    for name, model in models.items():
        exact = states[name.removesuffix("_int8")]
        record[name] = {
            "mebibytes": mebibytes(model),
            "speed_up": ratio(times["dense"], times[name]),
            "relative_change_by_rounding": float((states[name] - exact).norm() / exact.norm()),
        }
    write(record, output / "int8_speed.json")


if __name__ == "__main__":
    typer.run(main)
