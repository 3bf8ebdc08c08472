"""Sentence encoders on retrieval: pruned, with half of the layers, in int8, and both.

    STAT_PRUNE_DATA=... OMP_NUM_THREADS=1 python benchmarks/retrieval.py
    python benchmarks/retrieval.py --model BAAI/bge-small-en-v1.5 --nano-beir scifact

Questions of SQuAD's dev split are to find their paragraph among all of it; pruning is calibrated on
paragraphs and questions of the train split. Nothing is trained. All run in ONNX Runtime, where int8
is that of `result.export("onnx", type="int8")`: weights channel by channel, and activations as they
come. Speed-ups are over the dense float32 model there, in turns, ratios of medians.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    InformationRetrievalEvaluator,
    NanoBEIREvaluator,
)
from torch import nn
from transformers import PreTrainedModel

import stat_prune
from harness import options, records
from harness.cells import without_place
from harness.inputs import random_tokens
from harness.publishing import publishing
from harness.records import Record
from harness.sources import find_data, find_model
from runtimes import Network, mebibytes, opened
from squad import LOCAL_TRAIN
from stat_prune.cli.demo.demo_data import find_sentence_encoder
from stat_prune.data.sampling import evenly_spaced
from stat_prune.errors import DataError
from stat_prune.evaluation.squad_data import read_squad
from stat_prune.exporting import export
from stat_prune.families import transformer_layers
from stat_prune.measuring.latency import take_turns, undisturbed_clock
from stat_prune.measuring.timing import device_name
from stat_prune.model.whole_encoders import transformer_of
from stat_prune.pipeline.accounting import measure
from stat_prune.reporting.report import versions

METRICS = ("ndcg@10", "recall@10")
SQUAD = "squad"

#: int8 is a suffix of a method's name.
INT8 = "-int8"
HALVES = {"first-of-two-layers": 0, "second-of-two-layers": 1}


class Models:
    """The encoder, what is made of it, and its tokenizer; each made when it is first asked for."""

    def __init__(self, model: str | None, calibration: list[str], samples: int, seed: int) -> None:
        self.name = str(find_sentence_encoder()) if model is None else find_model(model)
        self.calibration, self.samples, self.seed = calibration, samples, seed
        self.pruned: dict[float, stat_prune.PruningResult] = {}

    @cached_property
    def dense(self) -> SentenceTransformer:
        """As it was published."""
        return SentenceTransformer(self.name, device="cpu").eval()

    def prune(self, budgets: list[float]) -> None:
        """To fractions of the MACs at the lengths of the calibration set."""
        missing = [kept for kept in budgets if kept not in self.pruned]
        if missing:
            results = stat_prune.prune_family(
                self.dense,
                self.calibration,
                targets=[stat_prune.MACs(kept) for kept in missing],
                num_calibration_samples=self.samples,
                seed=self.seed,
            )
            self.pruned |= dict(zip(missing, results, strict=True))

    def transformer(self, method: str, kept: float) -> PreTrainedModel:
        """What a method leaves of the transformer, in float32."""
        dense = transformer_of(self.dense)
        if method in HALVES:
            return with_layers(dense, HALVES[method])
        return dense if kept == 1 else transformer_of(self.pruned[kept].model)


def with_layers(model: PreTrainedModel, first: int) -> PreTrainedModel:
    """A copy with every second layer, from the first or from the second on."""
    model = copy.deepcopy(model)
    layers = transformer_layers(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and list(child) == layers:
                setattr(module, name, nn.ModuleList(layers[first::2]))
    model.config.num_hidden_layers = len(layers[first::2])
    return model


def with_network(encoder: SentenceTransformer, network: Network) -> SentenceTransformer:
    """The encoder with another program in place of its transformer."""
    encoder = copy.deepcopy(encoder)

    def forward(features: dict[str, Any], **_: Any) -> dict[str, Any]:
        tokens = features["input_ids"]
        given = {"token_type_ids": torch.zeros_like(tokens)} | features
        names = ("input_ids", "attention_mask", "token_type_ids")
        states = network(**{name: given[name] for name in names})["last_hidden_state"]
        return {**features, "token_embeddings": torch.as_tensor(states)}

    encoder[0].forward = forward
    return encoder


def squad_evaluator(
    dev: Path | None, questions: int, paragraphs: int | None, seed: int
) -> InformationRetrievalEvaluator:
    """So many paragraphs of dev, evenly spaced, and so many questions drawn from those on them."""
    every = read_squad(dev)
    texts = list(dict.fromkeys(one.context for one in every))
    numbers = {texts[i]: str(i) for i in evenly_spaced(len(texts), paragraphs)}
    every = [one for one in every if one.context in numbers]
    chosen = np.random.default_rng(seed).permutation(len(every))[:questions]
    asked = {every[i].id: every[i] for i in sorted(chosen)}
    return InformationRetrievalEvaluator(
        {one.id: one.text for one in asked.values()},
        {number: text for text, number in numbers.items()},
        {one.id: {numbers[one.context]} for one in asked.values()},
        **_cut_at_ten(),
    )


def _cut_at_ten() -> dict[str, Any]:
    return {
        "ndcg_at_k": [10],
        "precision_recall_at_k": [10],
        "mrr_at_k": [10],
        "map_at_k": [10],
        "accuracy_at_k": [10],
        "batch_size": 32,
        "show_progress_bar": True,
        "write_csv": False,
    }


def nano_beir_evaluator(name: str) -> NanoBEIREvaluator:
    """A task of NanoBEIR, from the Hub or its cache.

    Raises
    ------
    DataError
        If it is in neither.
    """
    try:
        return NanoBEIREvaluator([name], **_cut_at_ten())
    except (OSError, ValueError) as error:
        raise DataError(
            f"NanoBEIR's {name} is neither to be had from the Hub nor in its cache: {error}"
        ) from error


def scores_of(evaluator: Any, encoder: SentenceTransformer) -> dict[str, float]:
    """The scores that have a table."""
    found = evaluator(encoder)
    return {
        metric: float(next(value for name, value in found.items() if name.endswith(metric)))
        for metric in METRICS
    }


def calibration_texts(train: Path | None) -> list[str]:
    """Paragraphs of the train split, and as many of its questions."""
    questions = read_squad(train, split="train")
    paragraphs = list(dict.fromkeys(one.context for one in questions))
    step = max(1, len(questions) // len(paragraphs))
    return paragraphs + [one.text for one in questions[::step]]


def speed_up(dense: Network, other: Network, batch: Mapping[str, Any], rounds: int) -> float:
    """Median time of the dense model by the other's."""
    device = torch.device("cpu")
    clock = undisturbed_clock(device)
    # What onnxruntime does on one thread is done by the one that calls it.
    turns = take_turns([partial(one, **batch) for one in (dense, other)], device, clock)
    seconds = zip(*islice(turns, rounds), strict=True)
    before, after = (statistics.median(one) for one in seconds)
    return before / after


def main(
    model: Annotated[
        str | None, typer.Option(help="A sentence encoder. Default: all-MiniLM-L6-v2.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="SQuAD's train split, or part of it.")] = None,
    dev: Annotated[Path | None, typer.Option(help="SQuAD's dev split.")] = None,
    nano_beir: Annotated[
        list[str] | None, typer.Option(help="A task of NanoBEIR beside it; repeatable.")
    ] = None,
    budget: options.Budgets = None,
    questions: Annotated[int, typer.Option(min=1, help="Of dev, that are asked.")] = 1000,
    paragraphs: Annotated[
        int | None, typer.Option(min=1, help="Of dev, that they are looked for in. Default: all.")
    ] = None,
    samples: options.Samples = 512,
    seed: Annotated[int, typer.Option(help="Of calibration and questions.")] = 0,
    shape: Annotated[str, typer.Option(help="Sequences x tokens that are timed.")] = "8x128",
    rounds: Annotated[int, typer.Option(min=1, help="Of turns, in timing.")] = 15,
    output: options.Output = Path("results/retrieval"),
) -> None:
    """Measure, tabulate and draw."""
    torch.set_num_threads(1)
    budgets = budget or [0.6, 0.5, 0.4]
    train = find_data(train, *(name.format(version="1.1") for name in LOCAL_TRAIN))
    dev = find_data(dev, "squad/dev-v1.1.json")
    models = Models(model, calibration_texts(train), samples, seed)
    evaluators: dict[str, Callable[[], Any]] = {
        SQUAD: cache(partial(squad_evaluator, dev, questions, paragraphs, seed))
    }
    evaluators |= {
        f"nano-{name}": cache(partial(nano_beir_evaluator, name)) for name in nano_beir or []
    }
    cells: dict[str, list[float]] = {"stat": budgets, f"dense{INT8}": [1.0], f"stat{INT8}": budgets}
    cells |= {name: [0.5] for name in HALVES}
    conditions = {
        "model": "all-MiniLM-L6-v2" if model is None else model,
        "calibrated on": f"{samples} paragraphs and questions of SQuAD train",
        "questions": questions,
        "among": "all paragraphs of dev" if paragraphs is None else f"{paragraphs} paragraphs",
        "runs in": "ONNX Runtime, one thread",
        "timed on": f"{shape} tokens, {rounds} rounds",
        "processor": device_name(torch.device("cpu")),
    }
    with (
        publishing("retrieval", output, len(evaluators) * len(cells)) as add,
        TemporaryDirectory() as place,
    ):
        run = _Run(models, Path(place), shape, rounds)
        for evaluator in evaluators.values():
            evaluator()  # what cannot be had is said before any work
        for name, evaluator in evaluators.items():
            dense: dict[str, float] = {}
            for method, kept in cells.items():
                path = output / f"{name}-{method}-{seed}.json"
                record = records.read(path, conditions)
                if record is None:
                    dense = dense or run.scores(evaluator(), "dense", 1.0)
                    models.prune([one for one in kept if method.startswith("stat") and one < 1])
                    record = run.record(name, method, kept, evaluator(), dense, seed, conditions)
                    records.write(path, record)
                else:
                    dense = record["details"]["dense"]
                add(record)


class _Run:
    """Models in ONNX Runtime, each exported when it is first asked for."""

    def __init__(self, models: Models, place: Path, shape: str, rounds: int) -> None:
        self.models, self.place, self.rounds = models, place, rounds
        self.batch_size, self.seq_length = map(int, shape.split("x"))
        self.networks: dict[tuple[str, float], tuple[Network, float]] = {}

    def network(self, method: str, kept: float) -> tuple[Network, float]:
        """A method's model in ONNX Runtime, and its size in bytes."""
        if (method, kept) not in self.networks:
            type = "int8" if method.endswith(INT8) else "f32"
            folder = self.place / f"{method}-{kept:g}"
            export(
                self.models.transformer(method.removesuffix(INT8), kept),
                folder,
                "onnx",
                tokenizer=self.models.dense.tokenizer,
                type=type,
            )
            self.networks[method, kept] = opened(folder), mebibytes(folder) * 2**20
        return self.networks[method, kept]

    def scores(self, evaluator: Any, method: str, kept: float) -> dict[str, float]:
        """On one task."""
        encoder = with_network(self.models.dense, self.network(method, kept)[0])
        return scores_of(evaluator, encoder)

    def record(
        self,
        task: str,
        method: str,
        budgets: list[float],
        evaluator: Any,
        dense: dict[str, float],
        seed: int,
        conditions: dict[str, Any],
    ) -> Record:
        """Of one method at all its sizes."""
        start = time.perf_counter()
        details, sizes = {"dense": dense}, {}
        whole, size = self.network("dense", 1.0)
        first = transformer_of(self.models.dense)
        measures = {"dense": {"bytes": size, "parameters": float(first.num_parameters())}}
        batch = random_tokens(first, self.batch_size, self.seq_length, seed=1)
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        before = measure(first, self.seq_length)
        for kept in budgets:
            name = f"{kept:g}"
            network, size = self.network(method, kept)
            model = self.models.transformer(method.removesuffix(INT8), kept)
            after = measure(model, self.seq_length)
            details[name] = self.scores(evaluator, method, kept)
            sizes[name] = {
                "kept_macs": after.block_macs / before.block_macs,
                "kept_parameters": after.block_parameters / before.block_parameters,
            }
            measures[name] = {
                "bytes": size,
                "parameters": float(model.num_parameters()),
                "speed_up": speed_up(whole, network, batch, self.rounds),
            }
        result = None if method in HALVES else self.models.pruned.get(budgets[0])
        return {
            "benchmark": "retrieval",
            "task": task,
            "method": method,
            "seed": seed,
            "metric": METRICS[0],
            "metrics": list(METRICS),
            "higher_is_better": True,
            "dense": dense[METRICS[0]],
            "scores": {f"{kept:g}": details[f"{kept:g}"][METRICS[0]] for kept in budgets},
            "details": details,
            "sizes": sizes,
            "measures": measures,
            "conditions": conditions,
            "refused": None,
            "seconds": time.perf_counter() - start,
            "settings": {} if result is None else without_place(result.report.settings),
            "versions": versions(),
        }


if __name__ == "__main__":
    typer.run(main)
