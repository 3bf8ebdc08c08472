"""Records on disk: each is whole or not there, and as the schema says."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from stat_prune.errors import DataError

Record = dict[str, Any]

SCHEMA = Path(__file__).with_name("record.schema.json")


def read(path: Path, conditions: Mapping[str, Any]) -> Record | None:
    """The record of that name, if there is one.

    Raises
    ------
    DataError
        If it is no record, or was measured under other conditions.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is no record: {error}. Move it away to measure again.") from error
    check(record, path)
    # Records from before there were conditions have none.
    there = record.get("conditions", conditions)
    if there != conditions:
        changed = "; ".join(
            f"{name}: {there.get(name)!r}, now {conditions.get(name)!r}"
            for name in {**there, **conditions}
            if there.get(name) != conditions.get(name)
        )
        raise DataError(
            f"{path} was measured under other conditions ({changed}). Choose another --output, or "
            "delete the record."
        )
    return record


def alike(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Records that may be averaged: of one task, under the same conditions; and what they are.

    The task, and of the conditions those in which it was measured differently elsewhere.
    """
    tasks: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        same = tasks.setdefault(record["task"], {})
        same.setdefault(json.dumps(_conditions(record), sort_keys=True), []).append(record)
    found = []
    for task, groups in tasks.items():
        every = [_conditions(rows[0]) for rows in groups.values()]
        for own, rows in zip(every, groups.values(), strict=True):
            others = [name for name in own if any(one.get(name) != own[name] for one in every)]
            told = "; ".join(f"{name}: {plain(own[name])}" for name in others)
            found.append((f"{task} ({told})" if told else task, rows))
    return found


def plain(value: Any) -> str:
    """A condition as text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _conditions(record: Record) -> dict[str, Any]:
    """Means are over seeds, so that these are none."""
    return {name: one for name, one in record.get("conditions", {}).items() if name != "seed"}


def write(path: Path, record: Record) -> None:
    """Put the record on the disk in one step: a process killed on the way leaves what was there."""
    record = _finite(record)
    check(record, path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check(record: Any, path: Path) -> None:
    """Refuse what the schema does not admit."""
    error = next(iter(_validator().iter_errors(record)), None)
    if error is not None:
        raise DataError(
            f"{path} is not as {SCHEMA.name} says, at {error.json_path}: {error.message}. Move it "
            "away to measure again."
        )


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
