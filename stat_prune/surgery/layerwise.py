"""One layer of a model at a time: what the layers before it return is known, not computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from stat_prune.families import input_embeddings, stacks_of, transformer_layers
from stat_prune.model.dispatched import input_device
from stat_prune.model.running import Batch, model_inputs, stubbed

#: What the last layer so far of each stack has returned, by the number of the stack; and, by
#: `EMBEDDED`, what the embeddings of the only stack have (`embedding_noted`).
States: TypeAlias = dict[int, Any]

#: Number of no stack.
EMBEDDED = -1


class SeenEnough(Exception):
    """Raised in a hook: what comes later in the forward pass is not needed."""


def stack_numbers(model: PreTrainedModel) -> list[int]:
    """For each layer of a model, which of its stacks it belongs to."""
    return [number for number, (_, layers) in enumerate(stacks_of(model)) for _ in layers]


@contextmanager
def known_before(model: PreTrainedModel, layer: int, states: States) -> Iterator[None]:
    """The layers before `layer` answer with what the last of their stack has returned.

    So it enters the next layer, or what comes behind the last. Embeddings that are known are not
    computed either.
    """
    layers = transformer_layers(model)[:layer]
    numbers = stack_numbers(model)[:layer]
    answers = {
        one: partial(states.get, number) for one, number in zip(layers, numbers, strict=True)
    }
    embeddings = _embeddings(model) if EMBEDDED in states else None
    if embeddings is not None:
        answers[embeddings] = partial(states.get, EMBEDDED)
    with stubbed(answers):
        yield


@contextmanager
def embedding_noted(model: PreTrainedModel, states: States) -> Iterator[None]:
    """What the embeddings return inside is known to `states` from then on."""
    embeddings = None if EMBEDDED in states else _embeddings(model)
    if embeddings is None:
        yield
        return
    seen: list[Any] = []
    handle = embeddings.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        yield
    finally:
        handle.remove()
    if len(seen) == 1:
        states[EMBEDDED] = seen[0]


def _embeddings(model: PreTrainedModel) -> nn.Module | None:
    """The largest module around the input embeddings that has no layer; None of several stacks."""
    table = input_embeddings(model) if len(stacks_of(model)) == 1 else None
    if table is None:
        return None
    layers = set(transformer_layers(model))
    for module in model.base_model.modules():  # outer ones first
        inside = set(module.modules())
        if table in inside and not inside & layers:
            return module
    return None


def run_layer(
    model: PreTrainedModel,
    layer: int,
    batch: Batch,
    states: States,
    device: torch.device | None = None,
) -> Any:
    """What one layer returns on a batch; nothing behind it is computed.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode, without gradients.
    layer : int
    batch : mapping of str to Tensor
        Model inputs.
    states : dict of int to object
        By stack, what the last of the layers before has returned.
    device : torch.device, optional
        Of the layer; by default that of the model's inputs.

    Returns
    -------
    object
        The state for the next layer, as the family's layers return it; None where a hook has
        stopped the pass earlier by raising `SeenEnough`.
    """
    base = model.base_model
    returned: list[Any] = []

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        returned.append(output)
        raise SeenEnough

    module = transformer_layers(model)[layer]
    handle = module.register_forward_hook(stop)
    try:
        with known_before(model, layer, states):
            base(**model_inputs(base, batch, device or input_device(base)))
    except SeenEnough:
        pass
    finally:
        handle.remove()
    return returned[0] if returned else None


def run_rest(
    model: PreTrainedModel,
    layer: int,
    batch: Batch,
    states: States,
    device: torch.device | None = None,
) -> Any:
    """The model's output on a batch, where what the layers before `layer` return is known.

    The parameters are those of `run_layer`.
    """
    with known_before(model, layer, states):
        return model(**model_inputs(model, batch, device or input_device(model)))


def run_behind(model: PreTrainedModel, batch: Batch, states: States) -> Any:
    """The model's output, from what its last layers have returned; of no states, from the batch."""
    return run_rest(model, len(transformer_layers(model)) if states else 0, batch, states)
