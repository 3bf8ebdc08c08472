"""Tensors made under `torch.inference_mode` can never be trained: a run makes none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def outside_inference_mode(model: nn.Module) -> Iterator[None]:
    """Compute outside of the caller's `torch.inference_mode`, on a model of ordinary tensors.

    Where the model itself was made in that mode, its tensors are replaced by ordinary copies, as
    nothing could be done with them outside of it but read them.
    """
    # Leaving it allows gradients, which the caller may have forbidden by torch.no_grad.
    gradients = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        for places in _inference_tensors(model):
            owner, name = places[0]
            copied = _ordinary(owner[name])
            for owner, name in places:
                owner[name] = copied
        yield


def _inference_tensors(model: nn.Module) -> list[list[tuple[dict[str, Any], str]]]:
    """Where each of them is in the model: tied weights in several places."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    places.setdefault(id(tensor), []).append((tensors, name))
    return list(places.values())


def _ordinary(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied
