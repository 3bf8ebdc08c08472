"""Wall-clock time of several models on one batch, measured so that they can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.collectors import evaluating, model_inputs


def median_latencies(
    models: Sequence[PreTrainedModel], batch: Mapping[str, Tensor], *, rounds: int = 7
) -> list[float]:
    """Median seconds of a forward pass, one for each model.

    The models take turns within a round, so that whatever else the machine does meets them all.
    A first round, which allocates and compiles, is not counted.

    Parameters
    ----------
    models : sequence of PreTrainedModel
        On the same device.
    batch : mapping of str to Tensor
    rounds : int
    """
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(rounds + 1):
        for model, measured in zip(models, seconds, strict=True):
            measured.append(_seconds(model, batch))
    return [statistics.median(measured[1:]) for measured in seconds]


def _seconds(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> float:
    inputs = model_inputs(model, batch, model.device)
    with evaluating(model):
        _synchronize(model.device)
        start = time.perf_counter()
        model(**inputs)
        _synchronize(model.device)
        return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
