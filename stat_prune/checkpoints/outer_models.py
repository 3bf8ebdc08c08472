"""Models that hold one which was pruned in place: they are saved as what opens again."""

from __future__ import annotations

import copy
import gc
import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from stat_prune.checkpoints.beside import warn_if_opened_as_stock
from stat_prune.checkpoints.checkpoint import as_pruned_class, stock_class
from stat_prune.errors import ModelWarning


def follow(inner: PreTrainedModel) -> None:
    """Let all models around one that was pruned in place know of its sizes.

    A classifier around its base model, or a vision-language model around its language model, takes
    the record of sizes into its own config, and the class that reads it. A model of
    sentence-transformers opens its own checkpoints with the modeling file from then on, as its
    trainer does at the end where the best one is to be loaded.
    """
    if not getattr(inner.config, "stat_prune", None):
        return
    for outer in _around(inner):
        if isinstance(outer, PreTrainedModel):
            _take_record(outer, inner)
        else:
            outer.trust_remote_code = True
            warn_if_opened_as_stock(inner)


def _around(inner: PreTrainedModel) -> list[Any]:
    """Models in this process that have `inner` as a part.

    A module does not know what it is part of, so all are looked at.
    """
    found = []
    for one in gc.get_objects():
        # The type, as proxies answer to `__class__` with another's and import what they stand for.
        kind = type(one)
        if one is inner or not issubclass(kind, nn.Module) or "_modules" not in vars(one):
            continue
        known = issubclass(kind, PreTrainedModel) or "trust_remote_code" in vars(one)
        if known and any(module is inner for module in one.modules()):
            found.append(one)
    return found


def _take_record(outer: PreTrainedModel, inner: PreTrainedModel) -> None:
    if stock_class(outer) is None:
        warnings.warn(
            f"{type(inner).__name__} was pruned inside of a {type(outer).__name__}, which is not a "
            "class of transformers: what its save_pretrained writes cannot be opened. Save the "
            "result by itself.",
            ModelWarning,
            stacklevel=4,
        )
        return
    if outer.config is not inner.config:
        path = _path(outer.base_model, inner.base_model)
        if path is None:
            return  # it is beside the base model, with a record of its own
        record = getattr(outer.config, "stat_prune", None)
        outer.config.stat_prune = _merged(
            record, inner.config.stat_prune, f"{path}." if path else ""
        )
    as_pruned_class(outer)


def _path(outer: nn.Module, inner: nn.Module) -> str | None:
    return next((path for path, module in outer.named_modules() if module is inner), None)


def _merged(outer: dict[str, Any] | None, inner: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The record of an outer model with that of a part of it, whose paths are below `prefix`."""
    merged = copy.deepcopy(outer or {})
    for name, value in inner.items():
        if isinstance(value, dict):
            old = merged.get(name, {}).items()
            kept = {path: entry for path, entry in old if not path.startswith(prefix)}
            merged[name] = kept | {prefix + path: entry for path, entry in value.items()}
        elif isinstance(value, list):
            paths = [path for path in merged.get(name, []) if not path.startswith(prefix)]
            merged[name] = paths + [prefix + path for path in value]
        else:
            merged[name] = value
    return merged
