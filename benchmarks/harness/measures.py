"""What a pruned model costs and gains beside its score, each cell pruned in its own process."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

import stat_prune
from harness.apart import apart
from harness.inputs import drawn, random_tokens
from harness.subject import Measuring, Subject, pruned
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.machine.process_memory import peak_memory, taken_memory
from stat_prune.measuring.latency import forward_turns, undisturbed_clock
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.model.dispatched import own_parameters
from stat_prune.model.running import evaluating, model_inputs
from stat_prune.reporting.report import PruningReport
from stat_prune.settings.options import MASK_FRACTION

Measures = dict[str, float]

SPEED_UP = "speed_up"


@dataclass(frozen=True)
class Cell:
    """A pruned model with the account of it, as `PruningResult` has it, and what was measured."""

    model: PreTrainedModel
    report: PruningReport
    measures: Measures


def measured_apart(
    subject: Subject, method: str, kept: float, seed: int, measuring: Measuring
) -> Cell:
    """The model at one budget, pruned in a process of its own and saved, loaded and measured."""
    folder = folder_of(subject, method, seed, kept)
    report, measures = apart(_pruned_and_saved, *subject.parts, method, kept, seed, folder)
    model = stat_prune.load(folder, device=subject.loaded[0].device)
    measures |= {
        "parameters": _parameters(model),
        "bytes": _bytes(folder),
        "divergence": distance(
            subject.loaded[0], model, _unseen(subject, measuring.examples), output_distance
        ),
    }
    return Cell(model, report, measures)


def of_dense(subject: Subject) -> Measures:
    """What the dense model costs."""
    model = subject.loaded[0]
    with TemporaryDirectory(dir=subject.folder) as place:
        model.save_pretrained(place)
        return {"parameters": _parameters(model), "bytes": _bytes(Path(place))}


def timed(
    subject: Subject, method: str, seed: int, known: Mapping[str, Measures], measuring: Measuring
) -> dict[str, Measures]:
    """The measures, with the speed-ups of models that are kept for it; these are then removed."""
    found = {kept: dict(measures) for kept, measures in known.items()}
    for kept, measures in found.items():
        folder = folder_of(subject, method, seed, float(kept)) if kept != "dense" else None
        if folder is None or SPEED_UP in measures or not folder.exists():
            continue
        dense = subject.loaded[0]
        measures[SPEED_UP] = speed_up(
            dense, stat_prune.load(folder, device=dense.device), measuring
        )
        shutil.rmtree(folder)
    return found


def speed_up(dense: PreTrainedModel, pruned: PreTrainedModel, measuring: Measuring) -> float:
    """Median time of the dense model by that of the pruned one, in turns."""
    batch = random_tokens(dense, measuring.batch_size, measuring.seq_length, seed=1)
    with forward_turns([dense, pruned], batch, undisturbed_clock(dense.device)) as turns:
        rounds = list(islice(turns, measuring.rounds))
    before, after = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    return before / after


def folder_of(subject: Subject, method: str, seed: int, kept: float) -> Path:
    """Where a pruned model is until it has been timed."""
    return subject.folder / "models" / f"{subject.name}-{method}-{seed}-{kept:g}"


def _pruned_and_saved(
    benchmark: str,
    name: str,
    make: Callable[[], Any],
    place: Path,
    settings: Mapping[str, Any],
    method: str,
    kept: float,
    seed: int,
    folder: Path,
) -> tuple[PruningReport, Measures]:
    """In a process of its own: prune, save, and say what it took."""
    subject = Subject(benchmark, name, make, place, settings)
    model, tokenizer = subject.loaded
    task, on_gpu = subject.task, model.device.type == "cuda"
    batches = calibration_set_for(
        model,
        subject.calibration,
        tokenizer,
        num_samples=task.num_calibration_samples,
        num_held_out=0,
        max_seq_length=None,
        batch_size=32,
        seed=seed,
        mask_fraction=MASK_FRACTION,
    ).batches
    # On a CPU that has other work, what this process computes says more than the wall clock.
    clock = time.perf_counter if on_gpu else time.process_time
    _forward(model, batches[-1:])
    start = clock()
    _forward(model, batches)
    forward = clock() - start
    del batches
    before, start, wall = taken_memory(model.device), clock(), time.perf_counter()
    (result,) = pruned(subject, method, [kept], seed)
    seconds, wall = clock() - start, time.perf_counter() - wall
    peak = peak_memory(model.device)
    result.save(folder, overwrite=True)
    return result.report, {
        "seconds": wall,
        "computing_seconds": seconds,
        "forwards": seconds / forward,
        "peak_bytes": peak,
        "bytes_before": before,
    }


def _forward(model: PreTrainedModel, batches: list[Any]) -> None:
    with evaluating(model):
        for batch in batches:
            model(**model_inputs(model, batch, model.device))
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _unseen(subject: Subject, count: int) -> list[Any]:
    task = subject.task
    examples = subject.calibration if task.unseen is None else task.unseen()
    return drawn(*subject.loaded, examples, count).batches


def _parameters(model: PreTrainedModel) -> int:
    return sum(one.numel() for one in own_parameters(model))


def _bytes(folder: Path) -> int:
    """Of the weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
