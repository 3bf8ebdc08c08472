"""Latency tables that were measured before: of this process, and on disk of earlier ones."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stat_prune.measuring.latency_table import LatencyTable

_measured: dict[str, LatencyTable] = {}


def cached_table(what: Mapping[str, Any], measure: Callable[[], LatencyTable]) -> LatencyTable:
    """The table of `what`, measured if neither this process nor the cache folder has it.

    Parameters
    ----------
    what : mapping of str to JSON values
        All that the times depend on.
    measure : callable
    """
    key = json.dumps(what, sort_keys=True)
    folder = cache_folder()
    name = f"latency-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if key not in _measured:
        table = _read(folder / name, key) if folder else None
        if table is None:
            table = measure()
            if folder:
                _write(folder / name, {"key": key, **table.to_lists()})
        _measured[key] = table
    return _measured[key]


def cache_folder() -> Path | None:
    """Where tables are kept: ``STAT_PRUNE_CACHE``, else ``stat_prune`` in the user's cache folder.

    None, for no cache on disk, where ``STAT_PRUNE_CACHE`` is set to nothing.
    """
    chosen = os.environ.get("STAT_PRUNE_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "stat_prune")


def _read(path: Path, key: str) -> LatencyTable | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return LatencyTable.from_lists(content) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: measured again
        return None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """In one step, so that no process reads half a file; without a cache where it cannot be."""
    temporary = path.with_name(f"{path.name}.saving-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
