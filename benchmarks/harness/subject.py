"""A task with the model and the data that its cells have in common, and how it is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import stat_prune
from harness import records
from harness.records import Record
from harness.task import Loaded, Task
from harness.ways import method_of
from slicegpt import slicegpt
from stat_prune.measuring.timing import device_name
from stat_prune.reporting.result import PruningResult

DENSE = "dense"


@dataclass(frozen=True)
class Measuring:
    """What is measured of each cell beside its score.

    Attributes
    ----------
    batch_size, seq_length : int
        Of the batch that is timed.
    rounds : int
        In which dense and pruned model take turns.
    examples : int
        Of the kind that is scored, on which the outputs are compared.
    speed : bool
        Whether to time now. If not, the pruned models are kept, for a run on a quiet machine.
    """

    batch_size: int = 8
    seq_length: int = 128
    rounds: int = 15
    examples: int = 200
    speed: bool = True

    def conditions(self) -> dict[str, Any]:
        """For the record."""
        return {
            "timed on": f"{self.batch_size} x {self.seq_length} tokens, {self.rounds} rounds",
            "divergence on": f"{self.examples} examples of the kind that is scored",
            "processor": device_name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
        }


class Subject:
    """A task with what takes time, each made when the first missing cell asks for it."""

    def __init__(
        self,
        benchmark: str,
        name: str,
        make: Callable[[], Task],
        folder: Path,
        settings: Mapping[str, Any] | None = None,
        measuring: Measuring | None = None,
    ) -> None:
        self.benchmark, self.name, self.make, self.folder = benchmark, name, make, folder
        self.settings, self.measuring = dict(settings or {}), measuring
        self.task = make()
        self.conditions = {**self.task.conditions, **self.settings}
        if measuring is not None:
            self.conditions |= measuring.conditions()

    @property
    def parts(self) -> tuple[Any, ...]:
        """What another process makes the same subject of."""
        return self.benchmark, self.name, self.make, self.folder, self.settings

    @cached_property
    def loaded(self) -> Loaded:
        """The dense model and its tokenizer."""
        return self.task.load()

    @cached_property
    def calibration(self) -> Any:
        """The calibration data."""
        return self.task.calibration()

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


def pruned(
    subject: Subject, method: str, budgets: Iterable[float], seed: int
) -> Sequence[PruningResult]:
    """The model at all budgets."""
    model, tokenizer = subject.loaded
    method, more = method_of(method)
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "targets": [subject.task.target(kept) for kept in budgets],
        "num_calibration_samples": subject.task.num_calibration_samples,
        "seed": seed,
        "progress": False,
        **subject.settings,
        **more,
    }
    if method == "slicegpt":
        return slicegpt(model, subject.calibration, **settings)
    return stat_prune.prune_family(model, subject.calibration, method=method, **settings)
