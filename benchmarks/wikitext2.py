"""WikiText-2: what is left of a causal language model at a given size.

    python benchmarks/wikitext2.py --model meta-llama/Llama-2-7b-hf --device cuda --dtype float16
    STAT_PRUNE_DATA=... python benchmarks/wikitext2.py --model llama-wikitext2

Perplexity on the test split by the two protocols of the field: in blocks of the context length
(2,048 where the model admits them), as SparseGPT and SliceGPT measure, and through a sliding
window. Calibrated on blocks of the train split; texts that are also in the test split are refused.
Figures compare only at one context length and one calibration corpus, so both are printed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness import options
from harness.cells import Grid, run
from harness.sources import find_data, find_model, load
from harness.task import Task
from harness.texts import check_apart, read_texts
from stat_prune import Parameters
from stat_prune.evaluation.hub import hub_rows
from stat_prune.evaluation.perplexity import joined_ids, perplexity

LOCAL_TRAIN = ("wikitext2/train.txt", "wikitext2/train_1000_paragraphs.json")
PROTOCOLS = ("blocks", "sliding")


def wikitext2_task(
    *,
    model: str,
    calibration: Path | None = None,
    test: Path | None = None,
    protocols: tuple[str, ...] = PROTOCOLS,
    context_length: int | None = None,
    samples: int = 128,
    limit: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    dtype: str = "float32",
) -> Task:
    """WikiText-2 for one model."""
    corpus = find_data(calibration, *LOCAL_TRAIN)
    scored = texts_of(find_data(test, "wikitext2/test.txt"), "test")
    train = texts_of(corpus, "train")
    check_apart(train, scored)
    if context_length is None:
        config = AutoConfig.from_pretrained(find_model(model))
        context_length = min(getattr(config, "max_position_embeddings", 2048), 2048)

    def score(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        return {
            metric(protocol): perplexity(
                network,
                tokenizer,
                scored,
                context_length=context_length,
                mode=protocol,
                limit=limit,
                batch_size=batch_size,
            )["perplexity"]
            for protocol in protocols
        }

    return Task(
        metrics=tuple(map(metric, protocols)),
        num_calibration_samples=samples,
        budgets=(0.8, 0.7, 0.6, 0.5),
        target=Parameters,
        load=lambda: load(find_model(model), AutoModelForCausalLM, device=device, dtype=dtype),
        calibration=lambda: blocks(find_model(model), train, context_length),
        score=score,
        conditions={
            "model": model,
            "scored on": "test" if limit is None else f"the first {limit} pieces of test",
            "context length": context_length,
            "sliding by": context_length // 2,
            "calibrated on": f"{samples} blocks of {corpus.name if corpus else 'train'}",
            "dtype": dtype,
        },
        higher_is_better=False,
        unseen=lambda: blocks(find_model(model), scored, context_length),
    )


def metric(protocol: str) -> str:
    """Name of the score."""
    return f"perplexity ({protocol})"


def texts_of(path: Path | None, split: str) -> list[str]:
    """A file's texts, or a split from the Hub."""
    if path is not None:
        return read_texts(path)
    rows = hub_rows(
        "Salesforce/wikitext",
        split,
        config="wikitext-2-raw-v1",
        instead=f"a file with the {split} split",
    )
    return [row["text"] for row in rows]


def blocks(model: str, texts: list[str], length: int) -> list[dict[str, Any]]:
    """The texts, joined by blank lines, in full blocks."""
    ids = joined_ids(AutoTokenizer.from_pretrained(model), texts)
    return [
        {"input_ids": ids[start : start + length]}
        for start in range(0, len(ids) - length + 1, length)
    ]


def main(
    model: Annotated[str, typer.Option(help="A folder, a name below models/, or a Hub name.")],
    calibration: Annotated[
        Path | None, typer.Option(help="Text to calibrate on; default WikiText-2 train.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="The test split as a file.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="blocks or sliding. Default: both.")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Default: the model's, at most 2,048.")
    ] = None,
    method: options.Methods = None,
    budget: options.Budgets = None,
    seed: options.Seeds = None,
    effort: options.Effort = None,
    allocation: options.Allocation = None,
    finish: options.Finish = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score only so many blocks or windows.")
    ] = None,
    samples: options.Samples = 128,
    batch_size: options.BatchSize = 8,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    output: options.Output = Path("results/wikitext2"),
) -> None:
    """Measure, tabulate and draw."""
    chosen = tuple(protocol or PROTOCOLS)
    if not set(chosen) <= set(PROTOCOLS):
        raise typer.BadParameter(f"protocols are {', '.join(PROTOCOLS)}")
    make = partial(
        wikitext2_task,
        model=model,
        calibration=calibration,
        test=test,
        protocols=chosen,
        context_length=context_length,
        samples=samples,
        limit=limit,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    run(
        "wikitext2",
        {"wikitext2": make},
        Grid(method, seed or [0], budget),
        output,
        settings=options.settings_of(effort, allocation, finish),
    )


if __name__ == "__main__":
    typer.run(main)
