"""What users pass as arguments: taken where it is plain what is meant, else refused by name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from stat_prune.errors import SettingsError

if TYPE_CHECKING:
    import torch

#: Of numpy's global generator, which transformers' Trainer seeds too.
LARGEST_SEED = 2**32 - 1


def integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """An integer of Python or numpy within bounds, as one of Python.

    Raises
    ------
    SettingsError
        For anything else.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if number >= least and (most is None or number <= most):
            return number
    what = f"an integer from {least} {'on' if most is None else f'to {most}'}"
    what = "a positive integer" if (least, most) == (1, None) else what
    what = f"{least} or {most}" if most == least + 1 else what
    raise SettingsError(f"`{name}` must be {what}, got {value!r}.{_instead(value, least)}")


def _instead(value: Any, least: int) -> str:
    """The integer that a string or a float is of, if it would do."""
    try:
        number = int(value) if isinstance(value, str | float) else least - 1
    except (ValueError, OverflowError):
        return ""
    return f" Did you mean {number}?" if number >= least and float(value) == number else ""


def check_number(name: str, value: Any) -> None:
    """Refuse what is no finite number.

    Raises
    ------
    SettingsError
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise SettingsError(f"`{name}` must be a number, got {value!r}.")


def seed_of(value: Any) -> int:
    """A seed that every generator takes."""
    return integer("seed", value, 0, LARGEST_SEED)


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises
    ------
    SettingsError
        For anything else: ``"no"`` would count as true.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise SettingsError(f"`{name}` must be True or False, got {value!r}.")


def entries(name: str, value: Any) -> tuple[int | str, ...]:
    """Integers and strings, of which one may be given by itself; None for none of them.

    Raises
    ------
    SettingsError
        For anything else.
    """
    if value is None:
        return ()
    alone = isinstance(value, int | str | Integral) or not isinstance(value, Iterable)
    found = [value] if alone else list(value)
    for one in found:
        if isinstance(one, bool) or not isinstance(one, str | Integral):
            raise SettingsError(
                f"`{name}` takes numbers of layers, 'heads', 'neurons' and patterns of block names "
                f"such as 'encoder.layer.0.*', got {one!r}."
            )
    return tuple(one if isinstance(one, str) else int(one) for one in found)


def usable_device(device: Any) -> str | torch.device | None:
    """A device that torch can compute on here; None where none is named.

    Raises
    ------
    SettingsError
        Saying what there is.
    """
    if device is None:
        return None
    import torch  # takes seconds, and the command line's help needs none of it

    if isinstance(device, bool) or not isinstance(device, str | Integral | torch.device):
        raise SettingsError(f"`device` must be a name such as 'cpu' or 'cuda:0', got {device!r}.")
    chosen = device if isinstance(device, str | torch.device) else int(device)
    try:
        where = torch.device(chosen)
        if where.type == "meta":
            raise ValueError("it has no memory")
        torch.empty(1, device=where)
    except Exception as error:  # each kind of device has its own
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise SettingsError(
            f"device={str(device)!r} cannot be used here: {reason[:100]}. This machine has "
            f"{', '.join(_devices())}; leave it out to compute where the model is."
        ) from error
    return where if isinstance(chosen, int) else chosen


def _devices() -> list[str]:
    import torch

    if not torch.accelerator.is_available():
        return ["'cpu'"]
    kind = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    return ["'cpu'", *(f"'{kind}:{index}'" for index in range(count))]


def check_path(name: str, value: Any) -> None:
    """Refuse what names no file or folder, if it is given.

    Raises
    ------
    SettingsError
    """
    if value is None:
        return
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise SettingsError(f"`{name}` must be a path, got {value!r}.")
    if text.split(os.sep)[0].startswith("~"):
        # Made by mistake, a folder called "~" is removed by mistake: with the home folder.
        raise SettingsError(
            f"`{name}` is {text!r}, and only shells put the home folder in the place of '~'. Pass "
            f"os.path.expanduser({text!r})."
        )
