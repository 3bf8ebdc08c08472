"""Model inputs that people bring, taken apart into single examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stat_prune.errors import DataError

TokenRow: TypeAlias = dict[str, Tensor]
"""The model inputs of one example: integers of one length for its tokens (and of another for those
of the decoder), floating-point images and sounds."""

# Token-level inputs by the mask that says which tokens are real. Whatever else a batch holds, but
# for labels and signals, is left behind.
TOKENS_OF = {
    "attention_mask": (
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "position_ids",
        "masked_tokens",
    ),
    "decoder_attention_mask": ("decoder_input_ids", "decoder_attention_mask"),
}

#: Inputs that are no tokens, and how many dimensions one example has.
SIGNALS = {"pixel_values": 3, "input_features": 2}


def holds_model_inputs(element: Mapping[str, Any]) -> bool:
    """Whether a record is model inputs rather than a record with columns of text."""
    return any(element.get(name) is not None for name in ("input_ids", *SIGNALS))


def is_batch(element: Mapping[str, Any]) -> bool:
    """Whether model inputs have a batch dimension."""
    dimensions = {"input_ids": 1, **SIGNALS}
    name = next(name for name in dimensions if element.get(name) is not None)
    return np.ndim(element[name]) > dimensions[name]


def input_rows(batch: Mapping[str, Any]) -> list[TokenRow]:
    """Rows of model inputs, with or without batch dimension; padding is still in them.

    Labels that are a sequence an example become ``target_ids``: what a decoder is to write.

    Raises
    ------
    DataError
        If inputs are not rectangular, not of the right kind, or differ in length.
    """
    inputs = _signals(batch)
    for mask, names in TOKENS_OF.items():
        inputs |= _tokens(batch, mask, names)
    counts = {name: len(value) for name, value in inputs.items()}
    count = next(iter(counts.values()))
    if any(other != count for other in counts.values()):
        raise DataError(f"A batch holds different numbers of examples: {counts}.")
    targets = _targets(batch, count)
    rows = []
    for index in range(count):
        row = {name: value[index] for name, value in inputs.items()}
        rows.append(row if targets is None else {**row, "target_ids": targets[index]})
    return rows


def _tokens(batch: Mapping[str, Any], mask: str, names: tuple[str, ...]) -> TokenRow:
    first = names[0]
    if batch.get(first) is None:
        return {}
    inputs = {name: _tensor(name, batch[name]) for name in names if batch.get(name) is not None}
    shape = inputs[first].shape
    for name, value in inputs.items():
        if value.is_floating_point() or value.is_complex():
            raise DataError(f"{name!r} must hold integers, got {value.dtype}.")
        if value.shape != shape or value.ndim not in (1, 2):
            raise DataError(
                f"{name!r} has shape {tuple(value.shape)}, {first!r} {tuple(shape)}; both must "
                "be (sequence,) or (batch, sequence)."
            )
    inputs = {name: torch.atleast_2d(value.long().cpu()) for name, value in inputs.items()}
    return {**inputs, mask: inputs.get(mask, torch.ones_like(inputs[first]))}


def _signals(batch: Mapping[str, Any]) -> TokenRow:
    inputs = {}
    for name, dimensions in SIGNALS.items():
        if batch.get(name) is None:
            continue
        value = _tensor(name, batch[name])
        if not value.is_floating_point() or value.ndim not in (dimensions, dimensions + 1):
            raise DataError(
                f"{name!r} must be floating point of {dimensions} dimensions an example, as the "
                f"model's processor makes it; got {value.dtype} of shape {tuple(value.shape)}."
            )
        value = value.float().cpu()
        inputs[name] = value if value.ndim > dimensions else value[None]
    return inputs


def _tensor(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return torch.stack(list(value))
        return torch.as_tensor(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"{name!r} is no rectangular array of numbers ({error}). "
            "Pass one example at a time, or pad the batch and give its attention_mask."
        ) from error


def _targets(batch: Mapping[str, Any], count: int) -> list[Tensor] | None:
    try:
        labels = torch.as_tensor(batch.get("labels"))
    except (
        ValueError,
        TypeError,
        RuntimeError,
        OverflowError,
    ):  # none, names of classes, lists of any length
        return None
    if labels.ndim == 1 and count == 1 and len(labels) > 1:
        labels = labels[None]
    if labels.is_floating_point() or labels.ndim != 2 or len(labels) != count:
        return None
    return [row[row != -100].long().cpu() for row in labels]
