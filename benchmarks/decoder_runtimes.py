"""A pruned decoder in ONNX Runtime, OpenVINO and mlx-lm, beside torch, on texts.

    STAT_PRUNE_DATA=... python benchmarks/decoder_runtimes.py --output results/decoder_runtimes

The TinyStories Llama is pruned to layers of different sizes, exported, and reads stories that it
was not calibrated on: the largest difference of a logit from torch's, and the perplexity. Programs
that are not installed are left out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import cross_entropy

import stat_prune
from tasks import STORIES, TASKS

Logits = Callable[[list[int]], Tensor]


def onnx(folder: Path, groups: list[int], head_size: int) -> Logits:
    """By the graph that goes on from a cache, which is empty here."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "decode.onnx")
    names = [one.name for one in session.get_inputs()[2:]]
    sizes = [size for size in groups for _ in ("keys", "values")]
    cache = {
        name: np.zeros((1, size, 0, head_size), np.float32)
        for name, size in zip(names, sizes, strict=True)
    }

    def logits(ids: list[int]) -> Tensor:
        tokens, places = np.array([ids]), np.arange(len(ids))[None]
        feed = {"input_ids": tokens, "position_ids": places, **cache}
        return torch.from_numpy(session.run(["logits"], feed)[0][0])

    return logits


def openvino(folder: Path) -> Logits:
    """By a graph that holds its cache as a state."""
    from openvino import Core

    # By itself it computes in bfloat16 on processors that can.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = Core().compile_model(folder / "openvino_decode.xml", "CPU", precision)

    def logits(ids: list[int]) -> Tensor:
        request = compiled.create_infer_request()
        given = {
            "input_ids": np.array([ids]),
            "position_ids": np.arange(len(ids))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        known = {name for one in compiled.inputs for name in one.names}
        found = request.infer({name: value for name, value in given.items() if name in known})
        return torch.from_numpy(found[compiled.outputs[0]][0])

    return logits


def mlx(folder: Path) -> Logits:
    """By mlx-lm."""
    import mlx.core as mx
    from mlx_lm import load

    model, _ = load(str(folder))
    return lambda ids: torch.from_numpy(np.array(model(mx.array([ids]))[0]))


def main(
    output: Annotated[Path, typer.Option(help="Folder for decoder_runtimes.json.")] = Path(
        "results/decoder_runtimes"
    ),
    kept: Annotated[float, typer.Option(help="Kept fraction of parameters.")] = 0.8,
    limit: Annotated[int, typer.Option(help="Stories that are read.")] = 20,
) -> None:
    """Export, read, compare."""
    task = TASKS[STORIES]()
    model, tokenizer = task.load()
    target = stat_prune.Parameters(kept)
    result = stat_prune.prune(model, task.calibration(), tokenizer=tokenizer, target=target)
    rows = [row for row in result.report.blocks if row.kind == "heads"]
    config = model.config
    head_size = config.head_dim or config.hidden_size // config.num_attention_heads
    texts = [tokenizer(one, truncation=True)["input_ids"] for one in task.unseen()[:limit]]

    def torch_logits(ids: list[int]) -> Tensor:
        with torch.no_grad():
            return result.model(torch.tensor([ids])).logits[0]

    with tempfile.TemporaryDirectory() as place:
        programs: dict[str, Logits] = {"torch": torch_logits}
        groups = [row.kept_groups for row in rows]
        for name, library, opened in (
            ("onnx", "onnxruntime", lambda at: onnx(at, groups, head_size)),
            ("openvino", "openvino", openvino),
            ("mlx", "mlx_lm", mlx),
        ):
            if find_spec(library) is not None:
                result.export(Path(place) / name, name)
                programs[name] = opened(Path(place) / name)
        record = {name: compared(one, torch_logits, texts) for name, one in programs.items()}
    sizes = {row.name: row.kept for row in result.report.blocks}
    record = {"kept": kept, "stories": limit, "sizes": sizes, "programs": record}
    output.mkdir(parents=True, exist_ok=True)
    (output / "decoder_runtimes.json").write_text(json.dumps(record, indent=2))
    typer.echo(json.dumps(record["programs"], indent=2))


def compared(program: Logits, reference: Logits, texts: list[list[int]]) -> dict[str, float]:
    """The largest difference of a logit, and the perplexity, over all texts."""
    largest, loss, count = 0.0, 0.0, 0
    for ids in texts:
        found = program(ids).float()
        largest = max(largest, float((found - reference(ids)).abs().max()))
        loss += float(cross_entropy(found[:-1], torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return {"largest_difference": largest, "perplexity": float(np.exp(loss / count))}


if __name__ == "__main__":
    typer.run(main)
