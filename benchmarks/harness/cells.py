"""Cells of a benchmark (task x method x seed): measured once, kept on disk, gone on with later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import records
from harness.measures import Cell, measured_apart, of_dense, timed
from harness.publishing import publishing
from harness.records import Record
from harness.subject import DENSE, Measuring, Subject, pruned
from harness.task import Task
from stat_prune.errors import ModelError, SettingsError, TargetError
from stat_prune.reporting.result import PruningResult

# What a method answers to a model or a target that it is not defined for.
REFUSALS = (ModelError, SettingsError, TargetError)


@dataclass(frozen=True)
class Grid:
    """What is measured of every task.

    Attributes
    ----------
    methods : sequence of str
    seeds : sequence of int
    budgets : sequence of float, optional
        Kept fractions; by default the task's own.
    """

    methods: Sequence[str]
    seeds: Sequence[int]
    budgets: Sequence[float] | None = None


def run(
    benchmark: str,
    tasks: Mapping[str, Callable[[], Task]],
    grid: Grid,
    output: Path,
    *more: Grid,
    settings: Mapping[str, Any] | None = None,
    measuring: Measuring | None = None,
) -> None:
    """Measure what is missing in the folder; write and print the table, and draw the figure.

    `more` are other methods, at other seeds; `settings` further arguments of ``prune``, which are
    conditions of each record. With `measuring`, every budget of a cell is pruned in a process of
    its own, and records say what that took, and what the model that is left of it takes.
    """
    grids = (grid, *more)
    count = len(tasks) * sum(len(one.methods) * len(one.seeds) for one in grids)
    with publishing(benchmark, output, count) as add:
        for name, make in tasks.items():
            subject = Subject(benchmark, name, make, output, settings, measuring)
            for one in grids:
                for record in _records(subject, one):
                    add(record)


def _records(subject: Subject, grid: Grid) -> Iterator[Record]:
    """The cells of one task, each on disk as soon as it is measured."""
    budgets = grid.budgets or subject.task.budgets
    for method in grid.methods:
        for seed in grid.seeds:
            path = subject.path(method, seed)
            record = subject.known(path)
            done = record["scores"] if record else {}
            missing = [kept for kept in budgets if f"{kept:g}" not in done]
            if record is None or (missing and not record.get("refused")):
                # In processes of their own budgets share nothing, and one at a time is kept.
                apart = subject.measuring is not None
                for part in [[kept] for kept in missing] if apart else [missing]:
                    record = _measured(subject, record, method, part, seed)
                    records.write(path, record)
            yield _timed(subject, record, path)


def _dense(subject: Subject) -> Record:
    """The dense model's own record, from the disk where it is there."""
    path = subject.path(DENSE)
    record = subject.known(path)
    if record is None:
        start = time.perf_counter()
        scores = dict(subject.task.score(*subject.loaded))
        record = subject.record(DENSE, 0, scores) | {"seconds": time.perf_counter() - start}
        if subject.measuring is not None:
            record["measures"] = {DENSE: of_dense(subject)}
        records.write(path, record)
    return record


def _timed(subject: Subject, record: Record, path: Path) -> Record:
    """With the speed-ups that are missing, where they are wanted and can be measured."""
    measures = record.get("measures", {})
    if subject.measuring is None or not subject.measuring.speed:
        return record
    found = timed(subject, record["method"], record["seed"], measures, subject.measuring)
    if found != measures:
        record |= {"measures": found}
        records.write(path, record)
    return record


def _measured(
    subject: Subject, known: Record | None, method: str, budgets: Sequence[float], seed: int
) -> Record:
    """Prune to the budgets at once, score each model, add to what is known."""
    dense = _dense(subject)
    start = time.perf_counter()
    record = {
        **subject.record(method, seed, dense.get("details", {}).get(DENSE, {})),
        **(known or {}),
    }
    try:
        results = _results(subject, method, budgets, seed)
    except REFUSALS as error:
        return record | {"refused": str(error), "seconds": time.perf_counter() - start}
    _, tokenizer = subject.loaded
    scores = [subject.task.score(result.model, tokenizer) for result in results]
    names = [f"{kept:g}" for kept in budgets]
    metric = subject.task.metric
    measures = {
        name: result.measures
        for name, result in zip(names, results, strict=True)
        if isinstance(result, Cell)
    }
    if measures:
        known_measures = record.get("measures") or dense.get("measures", {})
        record["measures"] = known_measures | measures
    return record | {
        "scores": record["scores"] | {n: s[metric] for n, s in zip(names, scores, strict=True)},
        "details": record.get("details", {})
        | {n: dict(s) for n, s in zip(names, scores, strict=True)},
        "sizes": record.get("sizes", {})
        | {n: sizes(result) for n, result in zip(names, results, strict=True)},
        "seconds": record.get("seconds", 0.0) + time.perf_counter() - start,
        "settings": without_place(results[0].report.settings),
        "versions": results[0].report.versions,
    }


def _results(
    subject: Subject, method: str, budgets: Sequence[float], seed: int
) -> Sequence[PruningResult | Cell]:
    if subject.measuring is None:
        return pruned(subject, method, budgets, seed)
    if method == "slicegpt":
        raise SettingsError("its models cannot be saved, from where they would be measured.")
    return [measured_apart(subject, method, kept, seed, subject.measuring) for kept in budgets]


def without_place(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings; of a model in a folder the name alone, as records are for others to read."""
    model = Path(settings["model"])
    return {**settings, "model": model.name if model.is_dir() else str(model)}


def sizes(result: PruningResult | Cell) -> dict[str, float]:
    """Fractions of the blocks that are left."""
    before, after = result.report.before, result.report.after
    return {
        "kept_macs": after.block_macs / before.block_macs,
        "kept_parameters": after.block_parameters / before.block_parameters,
    }
