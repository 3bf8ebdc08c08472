"""The models and data that pruning is measured on.

Local checkpoints and data are looked for in the folder that ``STAT_PRUNE_DATA`` names, as
``models/<name>`` and ``data/<name>``. Calibration texts come from train splits, scores from dev
splits or texts that calibration has not seen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stat_prune import MACs, Parameters
from stat_prune.demo.data import find_sentence_encoder
from stat_prune.evaluation.glue import GLUE_TASKS, evaluate_glue, read_glue
from stat_prune.evaluation.perplexity import perplexity
from stat_prune.evaluation.similarity import sts_spearman
from stat_prune.targets import Target


@dataclass(frozen=True)
class Task:
    """A model, its calibration texts and its score.

    Attributes
    ----------
    metric : str
    higher_is_better : bool
    num_calibration_samples : int
    budgets : tuple of float
        Kept fractions that are measured by default.
    target : callable
        From a kept fraction to a target.
    load : callable
        The dense model and its tokenizer.
    calibration : callable
        Texts; for GLUE tasks records with a label beside them, which only the methods that are
        defined with labels look at.
    score : callable
        Of a model with its tokenizer.
    """

    metric: str
    higher_is_better: bool
    num_calibration_samples: int
    budgets: tuple[float, ...]
    target: Callable[[float], Target]
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    calibration: Callable[[], list[Any]]
    score: Callable[[PreTrainedModel, PreTrainedTokenizerBase], float]


def data_folder() -> Path:
    """The folder that ``STAT_PRUNE_DATA`` names."""
    if not os.environ.get("STAT_PRUNE_DATA"):
        raise SystemExit("Set STAT_PRUNE_DATA to the folder that holds models/ and data/.")
    return Path(os.environ["STAT_PRUNE_DATA"])


def loaded(
    folder: Path, auto_class: type = AutoModel
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in float32 and its tokenizer."""
    model = auto_class.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@cache
def glue(task: str, split: str) -> Any:
    """One split of a GLUE task."""
    return read_glue(task, data_folder() / "data" / "glue", split=split)


def labelled(task: str, scale: float) -> list[dict[str, Any]]:
    """The train split of a GLUE task as records, in the order of its texts."""
    train, columns = glue(task, "train"), GLUE_TASKS[task].columns
    texts = [(text,) if isinstance(text, str) else text for text in train.texts]
    return [
        dict(zip(columns, parts, strict=True)) | {"label": label * scale}
        for parts, label in zip(texts, train.labels.tolist(), strict=True)
    ]


def glue_task(task: str) -> Task:
    """A MiniLM fine-tuned on a GLUE task, scored on its dev split.

    The one for STS-B predicts a fifth of the score, and its labels are scaled alike.
    """
    metric = GLUE_TASKS[task].metrics[0]
    return Task(
        metric=metric,
        higher_is_better=True,
        num_calibration_samples=512,
        budgets=(0.75, 0.6, 0.5, 0.4, 0.3, 0.2),
        target=lambda kept: MACs(kept, seq_length=GLUE_TASKS[task].average_length),
        load=lambda: loaded(
            data_folder() / "models" / f"minilm-{task}", AutoModelForSequenceClassification
        ),
        calibration=lambda: labelled(task, scale=0.2 if task == "stsb" else 1),
        score=lambda model, tokenizer: evaluate_glue(model, tokenizer, task, glue(task, "dev"))[
            metric
        ],
    )


def sentence_encoder_task() -> Task:
    """all-MiniLM-L6-v2 as it is, Spearman correlation of cosines on STS-B dev."""

    def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
        dev = glue("stsb", "dev")
        return sts_spearman(model, tokenizer, dev.texts, dev.labels)

    return Task(
        metric="spearman",
        higher_is_better=True,
        num_calibration_samples=1024,
        budgets=(0.8, 0.6, 0.5, 0.4, 0.3),
        target=lambda kept: MACs(kept, seq_length=20),
        load=lambda: loaded(find_sentence_encoder()),
        calibration=lambda: [text for pair in glue("stsb", "train").texts for text in pair],
        score=score,
    )


def stories_task() -> Task:
    """A small Llama with grouped queries, perplexity on stories that calibration has not seen."""

    @cache
    def stories() -> list[str]:
        return json.loads(
            (data_folder() / "data" / "tinystories" / "stories_1000.json").read_text()
        )

    return Task(
        metric="perplexity",
        higher_is_better=False,
        num_calibration_samples=200,
        budgets=(0.9, 0.8, 0.7, 0.5),
        target=Parameters,
        load=lambda: loaded(
            data_folder() / "models" / "llama-tinystories-656k", AutoModelForCausalLM
        ),
        calibration=lambda: stories()[:200],
        score=lambda model, tokenizer: perplexity(model, tokenizer, stories()[200:400])[
            "perplexity"
        ],
    )


TASKS: dict[str, Callable[[], Task]] = {
    "encoder": sentence_encoder_task,
    "stories": stories_task,
    "sst2": lambda: glue_task("sst2"),
    "mrpc": lambda: glue_task("mrpc"),
    "stsb": lambda: glue_task("stsb"),
}
