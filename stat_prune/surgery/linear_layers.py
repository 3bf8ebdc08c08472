"""Linear layers in place of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stat_prune.errors import NonFiniteWeightsError
from stat_prune.model.dispatched import is_offloaded, loaded
from stat_prune.model.folded_consumer import InputCorrection
from stat_prune.model.model_checks import beyond_range
from stat_prune.model.modeling_stat_prune import empty_layer
from stat_prune.model.projections import projection


def replace_layer(
    base_model: nn.Module, path: str, weight: Tensor, bias: Tensor | None
) -> list[int | bool]:
    """A new linear layer of the old one's class, dtype, device and gradient flag; its shape.

    In place of an offloaded one, on the CPU.
    """
    old: Any = base_model.get_submodule(path)
    new = empty_layer(old, len(weight), weight.shape[1], bias is not None)
    if is_offloaded(old):
        new.to_empty(device="cpu")
    new.requires_grad_(old.weight.requires_grad)
    new.train(old.training)
    base_model.set_submodule(path, new)
    replaced = projection(base_model, path)
    with torch.no_grad():
        replaced.weight.copy_(weight)
        if bias is not None and replaced.bias is not None:
            replaced.bias.copy_(bias)
    return [len(weight), weight.shape[1], bias is not None]


def correct_readers(module: nn.Module, readings: Sequence[InputCorrection]) -> None:
    """Let layers of a module make up for a changed input: others in their place."""
    for one in readings:
        for path in one.paths:
            with loaded(module, path) as old:
                weight, bias = one.applied(old.weight, old.bias)
            replace_layer(module, path, weight, bias)


def tell_readers(module: nn.Module, readings: Sequence[InputCorrection]) -> None:
    """The same in the layers themselves, whose weights are to be nobody else's."""
    with torch.no_grad():
        for one in readings:
            for path in one.paths:
                with loaded(module, path, store=True) as layer:
                    weight, bias = one.applied(layer.weight, layer.bias)
                    layer.weight.copy_(weight)
                    if bias is not None and layer.bias is not None:
                        layer.bias.copy_(bias)


def unshare(module: nn.Module, paths: Iterable[str], shared: Iterable[Tensor]) -> None:
    """Give layers copies of what they share, so that they can be changed in place."""
    others = {id(one) for one in shared}
    for path in paths:
        parameters = module.get_submodule(path)._parameters
        for name, one in parameters.items():
            if one is not None and id(one) in others:
                copied = one.detach().clone()
                parameters[name] = nn.Parameter(copied, requires_grad=one.requires_grad)


def check_readings(module: nn.Module, readings: Sequence[InputCorrection]) -> None:
    """Refuse what the dtype of a layer cannot hold.

    Raises
    ------
    NonFiniteWeightsError
    """
    for one in readings:
        for path in one.paths:
            with loaded(module, path) as old:
                dtype = old.weight.dtype
                largest = beyond_range(one.applied(old.weight, old.bias), dtype)
            if largest is not None:
                raise NonFiniteWeightsError(
                    f"What {path} is to make of an input that has changed takes a weight of "
                    f"{largest:.3g}, which {dtype} cannot hold. Use passes=1, or prune the model "
                    "in float32 and convert the result."
                )
