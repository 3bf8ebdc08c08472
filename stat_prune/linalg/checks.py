"""Checks of arguments, with messages that show the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stat_prune.linalg.exceptions import NonFiniteError


def check_matrix(value: object, name: str) -> Tensor:
    """Return `value` if it is a floating-point matrix without a zero dimension."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}.")
    if value.ndim != 2:
        raise ValueError(
            f"`{name}` must have two dimensions (rows, channels), got shape {tuple(value.shape)}; "
            "flatten the leading dimensions with reshape(-1, channels)."
        )
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be real floating point, got {value.dtype}.")
    return value


def check_finite(value: Tensor, name: str) -> None:
    """Raise a `NonFiniteError` that says where `value` is first not finite."""
    # A finite sum proves that every entry is, at the speed of reading and without memory; half
    # precision would overflow too easily. Only where it is not finite are the entries looked at.
    if bool(torch.isfinite(value.sum(dtype=torch.promote_types(value.dtype, torch.float32)))):
        return
    bad = (~torch.isfinite(value)).nonzero()
    if not len(bad):
        return
    where = tuple(int(i) for i in bad[0])
    raise NonFiniteError(
        f"`{name}` has {len(bad)} non-finite entries, the first at {where} "
        f"({float(value[where])}); remove these rows, or look for overflow in what made them."
    )


def check_gram(value: object, name: str = "gram") -> Tensor:
    """Return `value` if it is a square float64 matrix with a finite, non-negative diagonal."""
    gram = check_matrix(value, name)
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(f"`{name}` must be square, got shape {tuple(gram.shape)}.")
    if gram.dtype != torch.float64:
        raise TypeError(
            f"`{name}` must be float64, got {gram.dtype}; a Gram matrix accumulated in lower "
            "precision has lost rank, so accumulate it with Moments."
        )
    check_finite(gram, name)
    diagonal = gram.diagonal()
    if bool((diagonal < 0).any()):
        j = int(diagonal.argmin())
        raise ValueError(
            f"`{name}` must be positive semi-definite, but its diagonal is {float(diagonal[j])} "
            f"at channel {j}."
        )
    return gram


def check_weight(weight: object, num_channels: int, device: torch.device) -> Tensor:
    """Return the consumer's weight (outputs x channels) in float64 on `device`."""
    matrix = check_matrix(weight, "weight")
    if matrix.shape[1] != num_channels:
        raise ValueError(
            f"`weight` must have one column a channel ({num_channels}), "
            f"got shape {tuple(matrix.shape)}."
        )
    check_same_device(matrix, "weight", device)
    check_finite(matrix, "weight")
    return matrix.to(torch.float64)


def check_same_device(value: Tensor, name: str, device: torch.device) -> None:
    """Raise a ValueError if `value` is not on `device`."""
    if value.device != device:
        raise ValueError(
            f"`{name}` is on {value.device}, but the other arguments are on {device}; "
            f"move it with .to({str(device)!r})."
        )


def check_column_weights(column_weights: object, num_channels: int, like: Tensor) -> Tensor:
    """Return the column weights as a float64 vector on the device of `like`."""
    weights = torch.as_tensor(column_weights, dtype=torch.float64)
    if weights.shape != (num_channels,):
        raise ValueError(
            f"`column_weights` must be one number a column ({num_channels}), "
            f"got shape {tuple(weights.shape)}."
        )
    if isinstance(column_weights, Tensor):
        check_same_device(column_weights, "column_weights", like.device)
    check_finite(weights, "column_weights")
    if bool((weights < 0).any()):
        raise ValueError(
            f"`column_weights` must be non-negative, got {float(weights.min())} "
            f"at column {int(weights.argmin())}."
        )
    return weights.to(like.device)


def check_rank(rank: object, largest: int, name: str = "rank") -> int:
    """Return `rank` if it is an integer in 0..largest."""
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"`{name}` must be an int, got {rank!r}.")
    if not 0 <= rank <= largest:
        raise ValueError(f"`{name}` must lie in 0..{largest}, got {rank}.")
    return rank


def check_number(value: object, name: str, *, minimum: float = 0.0, strict: bool = False) -> float:
    """Return `value` if it is a finite number, at least (or, if `strict`, above) `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    low = value <= minimum if strict else value < minimum
    if low or not math.isfinite(value):
        relation = "greater than" if strict else "at least"
        raise ValueError(f"`{name}` must be finite and {relation} {minimum:g}, got {value}.")
    return float(value)


def check_group_size(group_size: object, num_channels: int) -> int:
    """Return the number of groups of `group_size` consecutive channels."""
    if isinstance(group_size, bool) or not isinstance(group_size, int):
        raise TypeError(f"`group_size` must be an int, got {group_size!r}.")
    if group_size < 1 or num_channels % group_size:
        raise ValueError(
            f"`group_size` must be a positive divisor of the number of channels "
            f"({num_channels}), got {group_size}."
        )
    return num_channels // group_size


def check_choice(value: object, name: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}.")
    return str(value)


def check_columns(columns: object, num_channels: int, device: torch.device) -> Tensor:
    """Return the column indices as an int64 vector on `device`: distinct, within range."""
    index = torch.as_tensor(columns, device=device)
    if index.ndim != 1 or (index.numel() and index.is_floating_point()):
        raise ValueError(
            f"`columns` must be a vector of integers, got {index.dtype} "
            f"of shape {tuple(index.shape)}."
        )
    index = index.to(torch.int64)
    if index.numel():
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= num_channels:
            raise ValueError(
                f"`columns` must lie in 0..{num_channels - 1}, got {low if low < 0 else high}."
            )
        if index.unique().numel() != index.numel():
            raise ValueError("`columns` must be distinct, got a column more than once.")
    return index


def check_count(value: object, name: str, minimum: int = 1) -> int:
    """Return `value` if it is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int, got {value!r}.")
    if value < minimum:
        wanted = "positive" if minimum == 1 else f"at least {minimum}"
        raise ValueError(f"`{name}` must be {wanted}, got {value}.")
    return value


def check_seed(value: object, name: str = "seed") -> int:
    """Return `value` if it is a non-negative integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int, got {value!r}.")
    if value < 0:
        raise ValueError(f"`{name}` must not be negative, got {value}.")
    return value
