"""What token embeddings make of some texts, before statistics need the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.checkpoints.layer_weights import Checkpoint
from stat_prune.families import token_embeddings, transformer_layers
from stat_prune.model.running import Batch, model_inputs, stubbed
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.workspace import read, write
from stat_prune.surgery.layerwise import SeenEnough


def write_embedded(checkpoint: Checkpoint, batches: Sequence[Batch], folder: Path) -> None:
    """Leave what the token embeddings return on each batch in a folder, call by call.

    They are in memory meanwhile, without a layer.
    """
    embeddings = token_embeddings(checkpoint.model)
    if embeddings is None:
        return
    checkpoint.load(checkpoint.embedding_names())
    note_embedded(checkpoint.model, batches, folder, checkpoint.device)
    checkpoint.release_embeddings()


def note_embedded(
    model: PreTrainedModel, batches: Sequence[Batch], folder: Path, device: torch.device
) -> None:
    """The same of a model with all in memory that stands before its layers."""
    embeddings = token_embeddings(model)
    if embeddings is None:
        return
    for position, batch in enumerate(batches):
        write(_embedded(model, embeddings, batch, device), _file(folder, position))


@contextmanager
def tables_in_memory(checkpoint: Checkpoint, run: Run) -> Iterator[None]:
    """All that is in no layer is in memory: embeddings and a head can be factored."""
    with checkpoint.loaded(checkpoint.outer_names(base=True, head=True)):
        yield
        run.forget_tables()


@contextmanager
def embedded_before(
    model: PreTrainedModel, folder: Path, position: int, device: torch.device
) -> Iterator[None]:
    """The token embeddings answer with what `write_embedded` has left of one batch, if it has."""
    embeddings, file = token_embeddings(model), _file(folder, position)
    if embeddings is None or not file.exists():
        yield
        return
    calls = iter(read(file, device))
    with stubbed({embeddings: lambda: next(calls)}):
        yield


def _embedded(
    model: PreTrainedModel, embeddings: nn.Embedding, batch: Batch, device: torch.device
) -> list[Tensor]:
    """All that they return before the first layer: some families embed token types by them too."""
    returned: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        returned.append(output)

    def stop(_module: nn.Module, _args: Any) -> None:
        raise SeenEnough

    first = transformer_layers(model)[0]
    handles = [embeddings.register_forward_hook(keep), first.register_forward_pre_hook(stop)]
    try:
        model.base_model(**model_inputs(model.base_model, batch, device))
    except SeenEnough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return returned


def _file(folder: Path, position: int) -> Path:
    return folder / f"embedded-{position}.pt"
