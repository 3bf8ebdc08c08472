"""SQuAD: what is left of an extractive question answering model at a given cost.

    python benchmarks/squad.py --model csarron/bert-base-uncased-squad-v1
    STAT_PRUNE_DATA=... python benchmarks/squad.py --model minilm-squad --limit 1000

F1 and exact match on the dev split; calibrated on windows of the train split; MACs counted at 170
tokens (Kwon et al. 2022). Without STAT_PRUNE_DATA, data comes from the Hub.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from harness import options
from harness.cells import Grid, run
from harness.sources import find_data, find_model, load
from harness.task import Task
from stat_prune import MACs
from stat_prune.evaluation.squad import AVERAGE_LENGTH, evaluate_squad
from stat_prune.evaluation.squad_data import HUB_NAMES, Question, read_squad
from stat_prune.evaluation.squad_windows import MAX_SEQ_LENGTH, STRIDE, windows

# A subset of the train split also serves to calibrate.
LOCAL_TRAIN = ("squad/train-v{version}.json", "squad/train_subset_44articles.json")


def squad_task(
    *,
    model: str,
    version: str = "1.1",
    train: Path | None = None,
    dev: Path | None = None,
    samples: int = 512,
    limit: int | None = None,
    max_seq_length: int = MAX_SEQ_LENGTH,
    stride: int = STRIDE,
    batch_size: int = 32,
    device: str | None = None,
    dtype: str = "float32",
) -> Task:
    """SQuAD for one model."""
    train = find_data(train, *(name.format(version=version) for name in LOCAL_TRAIN))
    dev = find_data(dev, f"squad/dev-v{version}.json")
    window = {"max_seq_length": max_seq_length, "stride": stride}

    def inputs(asked: list[Question]) -> list[dict[str, list[int]]]:
        tokenizer = AutoTokenizer.from_pretrained(find_model(model))
        return [found.inputs for found in windows(tokenizer, asked, **window)]

    questions = read_squad(dev, version=version)
    scored = "dev" if limit is None else f"{limit} of dev, evenly spaced"
    return Task(
        metrics=("f1", "exact_match"),
        num_calibration_samples=samples,
        budgets=(0.8, 0.6, 0.5, 0.4),
        target=partial(MACs, seq_length=AVERAGE_LENGTH),
        load=lambda: load(
            find_model(model), AutoModelForQuestionAnswering, device=device, dtype=dtype
        ),
        calibration=lambda: inputs(read_squad(train, version=version, split="train")),
        score=lambda network, tokenizer: evaluate_squad(
            network, tokenizer, questions, limit=limit, batch_size=batch_size, **window
        ),
        conditions={
            "model": model,
            "scored on": f"{scored}, v{version}",
            "calibrated on": f"{samples} windows of {train.name if train else 'train'}",
            "tokens a window": max_seq_length,
            "of which shared": stride,
            "MACs counted at (tokens)": AVERAGE_LENGTH,
            "dtype": dtype,
        },
        unseen=lambda: inputs(questions),
    )


def main(
    model: Annotated[str, typer.Option(help="A folder, a name below models/, or a Hub name.")],
    version: Annotated[str, typer.Option(help=f"Of {', '.join(HUB_NAMES)}.")] = "1.1",
    train: Annotated[Path | None, typer.Option(help="A file as SQuAD publishes it.")] = None,
    dev: Annotated[Path | None, typer.Option(help="A file as SQuAD publishes it.")] = None,
    method: options.Methods = None,
    budget: options.Budgets = None,
    seed: options.Seeds = None,
    effort: options.Effort = None,
    allocation: options.Allocation = None,
    finish: options.Finish = None,
    limit: options.Limit = None,
    samples: options.Samples = 512,
    max_seq_length: Annotated[int, typer.Option(help="Tokens a window.")] = MAX_SEQ_LENGTH,
    stride: Annotated[int, typer.Option(help="Tokens that neighbours share.")] = STRIDE,
    batch_size: options.BatchSize = 32,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    output: options.Output = Path("results/squad"),
) -> None:
    """Measure, tabulate and draw."""
    if version not in HUB_NAMES:
        raise typer.BadParameter(f"{version!r} is none of {', '.join(HUB_NAMES)}")
    make = partial(
        squad_task,
        model=model,
        version=version,
        train=train,
        dev=dev,
        samples=samples,
        limit=limit,
        max_seq_length=max_seq_length,
        stride=stride,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    run(
        "squad",
        {f"squad-v{version}": make},
        Grid(method, seed or [0], budget),
        output,
        settings=options.settings_of(effort, allocation, finish),
    )


if __name__ == "__main__":
    typer.run(main)
