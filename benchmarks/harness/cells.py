"""Cells of a benchmark (task x method x seed): measured once, kept on disk, gone on with later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import stat_prune
from harness import records
from harness.publishing import publishing
from harness.records import Record
from harness.task import Loaded, Task
from slicegpt import slicegpt
from stat_prune.errors import ModelError, SettingsError, TargetError
from stat_prune.reporting.result import PruningResult

DENSE = "dense"
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
) -> None:
    """Measure what is missing in the folder; write and print the table, and draw the figure.

    `more` are other methods, at other seeds; `settings` further arguments of ``prune``, which are
    conditions of each record.
    """
    grids = (grid, *more)
    count = len(tasks) * sum(len(one.methods) * len(one.seeds) for one in grids)
    with publishing(benchmark, output, count) as add:
        for name, make in tasks.items():
            subject = Subject(benchmark, name, make(), output, settings)
            for one in grids:
                for record in _records(subject, one):
                    add(record)


class Subject:
    """A task with what takes time, each made when the first missing cell asks for it."""

    def __init__(
        self,
        benchmark: str,
        name: str,
        task: Task,
        folder: Path,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.benchmark, self.name, self.task, self.folder = benchmark, name, task, folder
        self.settings = dict(settings or {})
        self.conditions = {**task.conditions, **self.settings}

    @cached_property
    def loaded(self) -> Loaded:
        """The dense model and its tokenizer."""
        return self.task.load()

    @cached_property
    def calibration(self) -> Any:
        """The calibration data."""
        return self.task.calibration()

    @cached_property
    def dense(self) -> Record:
        """The dense model's own record, from the disk where it is there."""
        path = self.path(DENSE)
        record = self.known(path)
        if record is None:
            start = time.perf_counter()
            scores = dict(self.task.score(*self.loaded))
            record = self.record(DENSE, 0, scores) | {"seconds": time.perf_counter() - start}
            records.write(path, record)
        return record

    def path(self, *parts: object) -> Path:
        """Of the record of a cell."""
        return self.folder / f"{'-'.join(map(str, (self.name, *parts)))}.json"

    def known(self, path: Path) -> Record | None:
        """The record on disk, if there is one."""
        return records.read(path, self.conditions)

    def record(self, method: str, seed: int, dense: Mapping[str, float]) -> Record:
        """A record without scores of pruned models."""
        return {
            "benchmark": self.benchmark,
            "task": self.name,
            "method": method,
            "seed": seed,
            "metric": self.task.metric,
            "metrics": list(self.task.metrics),
            "higher_is_better": self.task.higher_is_better,
            "dense": dense[self.task.metric],
            "scores": {},
            "details": {DENSE: dict(dense)},
            "sizes": {},
            "conditions": self.conditions,
            "refused": None,
            "seconds": 0.0,
            "settings": {},
            "versions": {},
        }


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
                record = _measured(subject, record, method, missing, seed)
                records.write(path, record)
            yield record


def _measured(
    subject: Subject, known: Record | None, method: str, budgets: Sequence[float], seed: int
) -> Record:
    """Prune to the budgets at once, score each model, add to what is known."""
    dense = subject.dense
    start = time.perf_counter()
    record = {
        **subject.record(method, seed, dense.get("details", {}).get(DENSE, {})),
        **(known or {}),
    }
    try:
        results = pruned(subject, method, budgets, seed)
    except REFUSALS as error:
        return record | {"refused": str(error), "seconds": time.perf_counter() - start}
    _, tokenizer = subject.loaded
    scores = [subject.task.score(result.model, tokenizer) for result in results]
    names = [f"{kept:g}" for kept in budgets]
    metric = subject.task.metric
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


def pruned(
    subject: Subject, method: str, budgets: Iterable[float], seed: int
) -> Sequence[PruningResult]:
    """The model at all budgets."""
    model, tokenizer = subject.loaded
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "targets": [subject.task.target(kept) for kept in budgets],
        "num_calibration_samples": subject.task.num_calibration_samples,
        "seed": seed,
        "progress": False,
        **subject.settings,
    }
    if method == "slicegpt":
        return slicegpt(model, subject.calibration, **settings)
    return stat_prune.prune_family(model, subject.calibration, method=method, **settings)


def without_place(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings; of a model in a folder the name alone, as records are for others to read."""
    model = Path(settings["model"])
    return {**settings, "model": model.name if model.is_dir() else str(model)}


def sizes(result: PruningResult) -> dict[str, float]:
    """Fractions of the blocks that are left."""
    before, after = result.report.before, result.report.after
    return {
        "kept_macs": after.block_macs / before.block_macs,
        "kept_parameters": after.block_parameters / before.block_parameters,
    }
