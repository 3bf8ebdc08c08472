"""What pruning gains: time of dense and pruned models that take turns in one process.

    python benchmarks/speed.py --shape 1x128 --shape 32x128 --mode eager --mode compiled
    python benchmarks/speed.py --model google-bert/bert-base-uncased --device cuda --shape 64x128
    python benchmarks/speed.py --weights llama-7b --device cuda --dtype bfloat16 --no-forwards

Without --model, random weights in the shape of BERT-base or another model: time depends on shapes
only. A shape is sequences x tokens, without padding. Also what pruning costs, beside a plain
forward over the same data. Figures are ratios of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModel, PreTrainedModel

import stat_prune
from harness import options, records
from harness.cells import sizes
from harness.cost_tables import FORWARD, STAGE
from harness.inputs import random_tokens
from harness.publishing import publishing
from harness.records import Record
from harness.runners import RUNNERS
from harness.shapes import SHAPES, random_weights
from harness.sources import find_model
from stat_prune.measuring.latency import take_turns
from stat_prune.measuring.timing import device_name
from stat_prune.model.running import evaluating, model_inputs
from stat_prune.reporting.result import PruningResult

PRUNING = "prune beside a forward"

#: Sequences at once, in pruning and in the forward beside it.
BATCH_SIZE = 32


@dataclass(frozen=True)
class Setup:
    """All that the times depend on, beside shape and mode."""

    model: str | None
    weights: str
    layers: int | None
    device: str
    dtype: str
    budgets: tuple[float, ...]
    round_to: int
    samples: int
    length: int
    repeats: int
    rounds: int
    seed: int

    @property
    def named(self) -> str:
        """The model, in words."""
        if self.model is not None:
            # Of a folder the name alone, as records are for others to read.
            return Path(self.model).name if Path(self.model).is_dir() else self.model
        layers = "" if self.layers is None else f", {self.layers} layers"
        return f"{self.weights}{layers}, random weights"

    def conditions(self) -> dict[str, Any]:
        """For the record."""
        named = asdict(self) | {"model": self.named}
        return named | {
            "budgets": list(self.budgets),
            "processor": device_name(torch.device(self.device)),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


class Family:
    """The dense model and the pruned ones, made when the first cell asks for them."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @cached_property
    def dense(self) -> PreTrainedModel:
        """On its device, in evaluation mode."""
        setup = self.setup
        if setup.model is None:
            return random_weights(
                setup.weights,
                layers=setup.layers,
                device=setup.device,
                dtype=setup.dtype,
                seed=setup.seed,
            )
        dtype = getattr(torch, setup.dtype)
        model = AutoModel.from_pretrained(find_model(setup.model), dtype=dtype)
        return model.eval().to(setup.device)

    def inputs(self, samples: int, length: int, seed: int) -> dict[str, torch.Tensor]:
        """Token ids without padding; images, which have a length of their own."""
        if self.dense.main_input_name != "pixel_values":
            return random_tokens(self.dense, samples, length, seed)
        config = self.dense.config
        shape = (samples, config.num_channels, config.image_size, config.image_size)
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": pixels.to(self.dense.device, self.dense.dtype)}

    def target(self, kept: float) -> stat_prune.MACs:
        """A share of the MACs, of texts at 128 tokens."""
        images = self.dense.main_input_name == "pixel_values"
        return stat_prune.MACs(kept) if images else stat_prune.MACs(kept, seq_length=128)

    @cached_property
    def calibration(self) -> dict[str, torch.Tensor]:
        """Examples to calibrate on, on the CPU as data is."""
        found = self.inputs(self.setup.samples, self.setup.length, self.setup.seed)
        return {name: value.cpu() for name, value in found.items()}

    def prune(self, budgets: Sequence[float]) -> list[PruningResult]:
        """Models of these shares of the MACs."""
        return stat_prune.prune_family(
            self.dense,
            self.calibration,
            targets=[self.target(kept) for kept in budgets],
            num_calibration_samples=self.setup.samples,
            batch_size=BATCH_SIZE,
            round_to=self.setup.round_to,
            seed=self.setup.seed,
            progress=False,
        )

    @cached_property
    def results(self) -> list[PruningResult]:
        """At all budgets."""
        return self.prune(self.setup.budgets)


def speed_up(family: Family, shape: str, mode: str) -> Record:
    """Median time of the dense model by that of each pruned one, in turns on one batch."""
    setup = family.setup
    batch_size, length = map(int, shape.split("x"))
    batch = family.inputs(batch_size, length, setup.seed + 1)
    models = [family.dense, *(result.model for result in family.results)]
    with torch.no_grad():
        runs = [RUNNERS[mode](model, batch) for model in models]
        turns = take_turns(runs, torch.device(setup.device), time.perf_counter)
        rounds = list(islice(turns, setup.rounds))
    dense, *pruned = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    names = [f"{kept:g}" for kept in setup.budgets]
    return {
        "task": shape,
        "method": mode,
        "metric": "speed-up",
        "dense": 1.0,
        "scores": {name: dense / value for name, value in zip(names, pruned, strict=True)},
        "details": {name: {"seconds": value} for name, value in zip(names, pruned, strict=True)}
        | {"dense": {"seconds": dense}},
        "sizes": {name: sizes(result) for name, result in zip(names, family.results, strict=True)},
        "settings": family.results[0].report.settings,
        "versions": family.results[0].report.versions,
    }


def pruning_time(family: Family) -> Record:
    """Time of pruning to the first budget, by that of a plain forward: the median of repeats."""
    kept, repeats = family.setup.budgets[0], []
    first = {name: value[:BATCH_SIZE] for name, value in family.calibration.items()}
    _forward(family.dense, first)  # which allocates
    for _ in range(family.setup.repeats):
        start = time.perf_counter()
        _forward(family.dense, family.calibration)
        between = time.perf_counter()
        (result,) = family.prune([kept])
        forward = between - start
        ratio = (time.perf_counter() - between) / forward
        repeats.append((ratio, forward, result.report.seconds))
    ratio, forward, seconds = sorted(repeats, key=lambda one: one[0])[(len(repeats) - 1) // 2]
    return {
        "task": f"{family.setup.named}: {PRUNING}",
        "method": result.report.settings["method"],
        "metric": "forwards",
        "dense": None,
        "scores": {f"{kept:g}": ratio},
        "details": {},
        "measures": {
            f"{kept:g}": {
                "forwards": ratio,
                "peak_bytes": result.report.peak_memory,
                **{f"{STAGE}{stage}": one for stage, one in seconds.items()},
            },
            "dense": {FORWARD: forward},
        },
        "sizes": {f"{kept:g}": sizes(result)},
        "settings": result.report.settings,
        "versions": result.report.versions,
    }


def _forward(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with evaluating(model):
        for start in range(0, len(inputs[model.main_input_name]), BATCH_SIZE):
            batch = {name: value[start : start + BATCH_SIZE] for name, value in inputs.items()}
            model(**model_inputs(model, batch, model.device))
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def main(
    model: Annotated[
        str | None, typer.Option(help="A folder or Hub name. Default: random weights.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help=f"Shape of the random weights, of {', '.join(SHAPES)}.")
    ] = "bert-base",
    layers: Annotated[
        int | None, typer.Option(min=1, help="Of the random weights. Default: the model's.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Sequences x tokens. Default: 1x128 and 32x128.")
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(RUNNERS)}. Default: eager.")
    ] = None,
    budget: options.Budgets = None,
    forwards: Annotated[bool, typer.Option(help="Time the models, dense and pruned.")] = True,
    pruning: Annotated[bool, typer.Option(help="Time pruning itself, too.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Of timing pruning.")] = 3,
    samples: options.Samples = 512,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a calibration example.")] = 64,
    round_to: Annotated[int, typer.Option(help="Multiples for numbers of neurons.")] = 1,
    rounds: Annotated[int, typer.Option(help="Counted rounds of turns.")] = 7,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    seed: Annotated[int, typer.Option(help="Of weights and tokens.")] = 0,
    output: options.Output = Path("results/speed"),
) -> None:
    """Measure, tabulate and draw."""
    modes = mode or ["eager"]
    if not set(modes) <= set(RUNNERS):
        raise typer.BadParameter(f"modes are {', '.join(RUNNERS)}")
    if weights not in SHAPES:
        raise typer.BadParameter(f"{weights!r} is none of {', '.join(SHAPES)}")
    budgets = tuple(budget or (0.75, 0.5, 0.25))
    setup = Setup(
        model=model,
        weights=weights,
        layers=layers,
        device=device or "cpu",
        dtype=dtype,
        budgets=budgets,
        round_to=round_to,
        samples=samples,
        length=length,
        repeats=repeats,
        rounds=rounds,
        seed=seed,
    )
    family, conditions = Family(setup), setup.conditions()
    cells: dict[str, Callable[[], Record]] = {
        f"{one}-{how}": partial(speed_up, family, one, how)
        for one in (shape or ["1x128", "32x128"] if forwards else [])
        for how in modes
    }
    if pruning:
        cells["pruning"] = partial(pruning_time, family)
    with publishing("speed", output, len(cells)) as add:
        for name, measure in cells.items():
            path = output / f"{name}.json"
            record = records.read(path, conditions)
            if record is None:
                shared = {"benchmark": "speed", "seed": seed, "conditions": conditions}
                record = shared | measure()
                records.write(path, record)
            add(record)


if __name__ == "__main__":
    typer.run(main)
