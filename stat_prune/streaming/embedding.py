"""What the token embeddings make of the calibration set, before statistics need the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stat_prune.collectors import Batch, answering, model_inputs
from stat_prune.layerwise import SeenEnough
from stat_prune.streaming.weights import Checkpoint
from stat_prune.streaming.workspace import read, write


def write_embedded(checkpoint: Checkpoint, batches: Sequence[Batch], folder: Path) -> None:
    """Leave what the token embeddings return on each batch in a folder, if they are asked at all.

    They are in memory meanwhile, without a layer.
    """
    embeddings = checkpoint.embeddings()
    if embeddings is None:
        return
    checkpoint.load(checkpoint.embedding_names())
    for position, batch in enumerate(batches):
        embedded = _embedded(checkpoint, embeddings, batch)
        if embedded is not None:
            write(embedded, _file(folder, position))
    checkpoint.release_embeddings()


@contextmanager
def embedded_before(checkpoint: Checkpoint, folder: Path, position: int) -> Iterator[None]:
    """The token embeddings answer with what `write_embedded` has left of one batch, if anything."""
    embeddings, file = checkpoint.embeddings(), _file(folder, position)
    if embeddings is None or not file.exists():
        yield
        return
    with answering({embeddings: lambda: read(file, checkpoint.device)}):
        yield


def _embedded(checkpoint: Checkpoint, embeddings: nn.Embedding, batch: Batch) -> Tensor | None:
    returned: list[Tensor] = []

    def stop(_module: nn.Module, _args: Any, output: Tensor) -> None:
        returned.append(output)
        raise SeenEnough

    base = checkpoint.model.base_model
    handle = embeddings.register_forward_hook(stop)
    try:
        base(**model_inputs(base, batch, checkpoint.device))
    except SeenEnough:
        pass
    finally:
        handle.remove()
    return returned[0] if returned else None


def _file(folder: Path, position: int) -> Path:
    return folder / f"embedded-{position}.pt"
