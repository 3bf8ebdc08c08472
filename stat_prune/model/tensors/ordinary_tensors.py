"""A run computes as if its caller had set nothing: tensors can be trained, products are exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def outside_modes_of_caller() -> Iterator[None]:
    """Compute outside of the caller's `torch.inference_mode`, autocast and default device.

    Tensors made in the first can never be trained; autocast would round the statistics to 8 bits;
    and what is made without the name of a device is meant to be on the CPU.
    """
    # Leaving inference mode allows gradients, which the caller may have forbidden by no_grad.
    gradients = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.set_grad_enabled(gradients))
        for kind in _autocast_devices():
            modes.enter_context(torch.autocast(kind, enabled=False))
        # A default device costs a Python call for each function of torch.
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        yield


def _autocast_devices() -> list[str]:
    """Kinds of devices that the caller casts on."""
    kinds = {"cpu"}
    if torch.accelerator.is_available():
        kinds.add(str(torch.accelerator.current_accelerator()))
    return sorted(kind for kind in kinds if torch.is_autocast_enabled(kind))


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
