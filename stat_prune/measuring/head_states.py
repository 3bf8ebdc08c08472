"""What the head of a language model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.data.batching import masks_in, token_mask
from stat_prune.errors import ModelError, NonFiniteActivationsError
from stat_prune.linalg import Moments, NonFiniteError
from stat_prune.measuring.collectors import token_rows
from stat_prune.model.dispatched import input_device
from stat_prune.model.running import Batch, evaluating, model_inputs


def head_moments(
    model: PreTrainedModel,
    head: nn.Module,
    batches: Iterable[Batch],
    forward: Callable[[int, Batch], Any] | None = None,
) -> Tensor:
    """Second moments E[h hᵀ] of the states that a head reads, of real tokens.

    Parameters
    ----------
    model : PreTrainedModel
    head : nn.Module
        Of the model, a linear layer.
    batches : iterable of mappings of str to Tensor
        Model inputs.
    forward : callable, optional
        Runs the model on the batch of a number. Default: the whole model.

    Returns
    -------
    Tensor of shape (hidden, hidden), float64

    Raises
    ------
    ModelError
        If the model never calls it.
    NonFiniteActivationsError
    """
    seen: list[Moments] = []
    with evaluating(model):
        for number, batch in enumerate(batches):
            with _noting(head, batch, seen):
                if forward is None:
                    model(**model_inputs(model, batch, input_device(model)))
                else:
                    forward(number, batch)
    if not seen or not seen[0].count:
        raise ModelError(
            f"{type(model).__name__} never calls its head as a layer, so that what it reads is not "
            "known. Leave lm_head out."
        )
    return seen[0].gram / seen[0].count


@contextmanager
def _noting(head: nn.Module, batch: Batch, seen: list[Moments]) -> Iterator[None]:
    def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        states = args[0]
        masks = (
            name for name in reversed(masks_in(batch)) if batch[name].shape == states.shape[:-1]
        )
        name = next(masks, None)
        mask = None if name is None else token_mask(batch, name).to(states.device)
        rows = token_rows(states, mask)
        if not seen:
            seen.append(Moments(rows.shape[-1]))
        seen[0].update(rows)

    handle = head.register_forward_pre_hook(note)
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteActivationsError(
            f"The states that the language model's head reads: {error} Run the model in float32 or "
            "bfloat16, or remove the example."
        ) from error
    finally:
        handle.remove()
