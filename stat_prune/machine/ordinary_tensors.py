"""Tensors made under `torch.inference_mode` can never be trained: a run makes none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Compute outside of the caller's `torch.inference_mode`."""
    # Leaving it allows gradients, which the caller may have forbidden by torch.no_grad.
    gradients = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


def make_ordinary(model: nn.Module) -> None:
    """Put ordinary copies in place of a model's tensors that were made in that mode.

    Nothing could be done with them outside of it but read them. Tied weights stay tied.
    """
    for places in _inference_tensors(model):
        owner, name = places[0]
        copied = ordinary(owner[name])
        for owner, name in places:
            owner[name] = copied


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor of the same values that can be trained, in the same memory where it could before."""
    detached = tensor.detach()
    values = detached.clone() if tensor.is_inference() else detached
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def _inference_tensors(model: nn.Module) -> list[list[tuple[dict[str, Any], str]]]:
    """Where each of them is in the model: tied weights in several places."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    places.setdefault(id(tensor), []).append((tensors, name))
    return list(places.values())
