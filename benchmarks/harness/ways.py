"""Methods with arguments of ``prune`` that make more, or less, of the same method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stat_prune.settings.methods import BASELINES, METHODS

#: By the name that records and tables have: the method, and further arguments.
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "stat-fast": ("stat", {"effort": "fast"}),
    "stat-thorough": ("stat", {"effort": "thorough"}),
    "stat-once": ("stat", {"passes": 1}),
    "stat-head-dims": ("stat", {"head_dims": True}),
    "stat-scales": ("stat", {"finish": "scales"}),
    "stat-lora": ("stat", {"finish": "lora"}),
    "stat-weights": ("stat", {"finish": "weights"}),
}

METHOD_NAMES = (*METHODS, *BASELINES, "slicegpt", *WAYS)


def method_of(way: str) -> tuple[str, Mapping[str, Any]]:
    """What ``prune`` is told."""
    return WAYS.get(way, (way, {}))
