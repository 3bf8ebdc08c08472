"""Running a model on batches: what it reads, without gradients, and with parts of it known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stat_prune.model.tensors.half_products import fast_half_products

#: What a model reads, by name.
Batch = Mapping[str, Tensor]

#: Squared distance of a pruned model's output from the dense one's: ``(dense, pruned, batch)``
#: to a tensor of one value a position that counts.
Objective = Callable[[Any, Any, Batch], Tensor]


def model_inputs(module: nn.Module, batch: Batch, device: torch.device) -> dict[str, Any]:
    """The entries of `batch` that the module's ``forward`` names, on `device`, without a cache.

    Labels stay behind: with them a head would compute a loss, for which the data may not be fit.
    """
    names = inspect.signature(module.forward).parameters
    dtype = next(module.parameters()).dtype
    inputs: dict[str, Any] = {
        name: value.to(device, dtype if value.is_floating_point() else None)
        for name, value in batch.items()
        if name in names and name != "labels"
    }
    if "use_cache" in names:
        inputs["use_cache"] = False
    return inputs


@contextmanager
def evaluating(model: nn.Module, *, timed: bool = False) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every module's own mode again outside.

    Products of half precision are as fast as they can be here, but where the model is `timed`.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    model.eval()
    try:
        with torch.no_grad(), nullcontext() if timed else fast_half_products(dtypes):
            yield
    finally:
        for name, module in model.named_modules():
            module.training = modes.get(name, module.training)


@contextmanager
def stubbed(answers: Mapping[nn.Module, Callable[[], Any]]) -> Iterator[None]:
    """These modules answer with what is known instead of computing."""
    own = {module: module.__dict__.get("forward") for module in answers}
    for module, answer in answers.items():
        module.forward = lambda *_args, _answer=answer, **_kwargs: _answer()
    try:
        yield
    finally:
        for module, forward in own.items():
            del module.forward
            if forward is not None:  # an attribute that hides the method: hooks of accelerate
                module.forward = forward
