"""Batches for models of `hand_pruned`, and what becomes of them elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def random_batch(size: int, length: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Token ids and a mask, the last sequence padded by two."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 50, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def fixed_inputs(name: str) -> dict[str, Any]:
    """What models of a class are called with beside a batch, to be exported."""
    writes = "Causal" in name or "LMHead" in name
    return {"use_cache": False} if writes else {}


def for_any_shape(name: str, batch: dict[str, Tensor], longest: int) -> dict[str, Any]:
    """Arguments of an exporter of a model class, so that batches of other shapes fit."""
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=longest)}
    fixed = fixed_inputs(name)
    return {
        "kwargs": batch | fixed,
        "dynamic_shapes": {**dict.fromkeys(batch, dimensions), **dict.fromkeys(fixed)},
    }


def assert_compiles(
    model: torch.nn.Module, batch: dict[str, Tensor] | None = None, *, backend: str = "inductor"
) -> None:
    """A compiled model gives the same outputs.

    The graph is the same for each backend; "inductor" makes C++ of it, which takes seconds.
    """
    compiled = torch.compile(model, backend=backend)
    batch = batch or random_batch(3, 11)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5
        )


def assert_exports(model: torch.nn.Module, name: str, *, rtol: float, atol: float) -> None:
    """An exported model gives the same outputs for a batch of another shape."""
    program = torch.export.export(model, (), **for_any_shape(name, random_batch(2, 12), 40))
    other = random_batch(3, 9, seed=1)
    with torch.no_grad():
        found = program.module()(**other, **fixed_inputs(name)).logits
        torch.testing.assert_close(found, model(**other).logits, rtol=rtol, atol=atol)


def in_onnxruntime(
    model: torch.nn.Module, name: str, folder: Path, batch: dict[str, Tensor]
) -> tuple[Any, Tensor]:
    """A model's graph, and the first output of ONNX Runtime for a batch of another shape."""
    import onnxruntime

    shapes = for_any_shape(name, random_batch(2, 12), 38)
    program = torch.onnx.export(model, (), dynamo=True, verbose=False, **shapes)
    program.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [one.name for one in session.get_inputs()]
    (found, *_) = session.run(None, {one: batch[one].numpy() for one in names})
    return program, torch.from_numpy(found)
