"""The models and data at hand without a hub, for `retention` and for questions about one model.

Checkpoints and data are looked for in the folder that ``STAT_PRUNE_DATA`` names. Calibration texts
come from train splits, scores from dev splits or texts that calibration has not seen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from glue import glue_task
from harness.sources import data_folder, find_data, find_model, load
from harness.task import Task
from squad import squad_task
from stat_prune import MACs, Parameters
from stat_prune.cli.demo.demo_data import find_sentence_encoder
from stat_prune.errors import SettingsError
from stat_prune.evaluation import masked_accuracy
from stat_prune.evaluation.glue import GLUE_TASKS, read_glue
from stat_prune.evaluation.perplexity import perplexity
from stat_prune.evaluation.similarity import sts_spearman
from wikitext2 import wikitext2_task


def fine_tuned(task: str, label_scale: float = 1.0) -> Task:
    """A MiniLM fine-tuned on a GLUE task; the one for STS-B predicts a fifth of the score."""
    data_folder()  # neither the Hub nor anything else has these
    return glue_task(
        task,
        model=f"minilm-{task}",
        budgets=(0.75, 0.6, 0.5, 0.4, 0.3, 0.2),
        label_scale=label_scale,
    )


def sentence_encoder(model: str | None = None) -> Task:
    """all-MiniLM-L6-v2, or another encoder by the mean of its tokens; Spearman on STS-B dev."""
    folder = find_data(None, "glue")

    def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        dev = read_glue("stsb", folder)
        return {"spearman": sts_spearman(model, tokenizer, dev.texts, dev.labels)}

    return Task(
        metrics=("spearman",),
        num_calibration_samples=1024,
        budgets=(0.8, 0.6, 0.5, 0.4, 0.3),
        target=partial(MACs, seq_length=20),
        load=lambda: load(find_sentence_encoder() if model is None else find_model(model)),
        calibration=lambda: [
            text for pair in read_glue("stsb", folder, split="train").texts for text in pair
        ],
        score=score,
        conditions={} if model is None else {"model": model},
        unseen=lambda: [text for pair in read_glue("stsb", folder).texts for text in pair],
    )


@cache
def read_stories() -> list[str]:
    """The TinyStories at hand."""
    path = data_folder() / "data" / "tinystories" / "stories_1000.json"
    return json.loads(path.read_text(encoding="utf-8"))


def stories() -> Task:
    """A small Llama with grouped queries, perplexity on stories that calibration has not seen."""
    return Task(
        metrics=("perplexity",),
        num_calibration_samples=200,
        budgets=(0.9, 0.8, 0.7, 0.5),
        target=Parameters,
        load=lambda: load(
            data_folder() / "models" / "llama-tinystories-656k", AutoModelForCausalLM
        ),
        calibration=lambda: read_stories()[:200],
        score=lambda model, tokenizer: {
            "perplexity": perplexity(model, tokenizer, read_stories()[200:400])["perplexity"]
        },
        higher_is_better=False,
        unseen=lambda: read_stories()[200:400],
    )


def reactions(folder: str) -> Task:
    """A masked language model of chemical reactions, accuracy on those it is not calibrated on."""
    texts = json.loads(
        (data_folder() / "data" / "reactions" / "reactions.json").read_text(encoding="utf-8")
    )
    first = texts[:NUM_REACTIONS]
    random.Random(0).shuffle(first)
    return Task(
        metrics=("accuracy",),
        num_calibration_samples=512,
        budgets=(0.8, 0.6, 0.4),
        target=MACs,
        load=lambda: load(data_folder() / "models" / folder, AutoModelForMaskedLM),
        calibration=lambda: first[:512],
        score=lambda model, tokenizer: {
            "accuracy": masked_accuracy(model, tokenizer, texts[NUM_REACTIONS:])
        },
        unseen=lambda: texts[NUM_REACTIONS:],
    )


#: Reactions to calibrate on; the others are scored.
NUM_REACTIONS = 600

STORIES = "stories"

TASKS: dict[str, Callable[[], Task]] = {
    "encoder": sentence_encoder,
    STORIES: stories,
    "reactions": partial(reactions, "rxnfp-bert-mlm"),
    "reactions-albert": partial(reactions, "rxnmapper-albert"),
    "sst2": partial(fine_tuned, "sst2"),
    "mrpc": partial(fine_tuned, "mrpc"),
    "stsb": partial(fine_tuned, "stsb", label_scale=0.2),
}

#: What any model of its kind can be scored on, beside the tasks of GLUE.
KINDS: dict[str, Callable[..., Task]] = {
    "encoder": sentence_encoder,
    "squad": squad_task,
    "wikitext2": wikitext2_task,
}


def named(line: str) -> tuple[str, Callable[[], Task]]:
    """A task, with the name of its records, by one line.

    Parameters
    ----------
    line : str
        A key of `TASKS`; or ``KIND=MODEL``: a task of GLUE or a key of `KINDS`, and a folder, a
        name below ``models/`` or a name on the Hub.

    Raises
    ------
    SettingsError
        If it is neither.
    """
    if line in TASKS:
        return line, TASKS[line]
    kind, _, model = line.partition("=")
    name = f"{kind}={Path(model).name}"
    if model and kind in KINDS:
        return name, partial(KINDS[kind], model=model)
    if model and kind in GLUE_TASKS:
        return name, partial(glue_task, kind, model=model)
    raise SettingsError(
        f"{line!r} is no task. There are {', '.join(TASKS)}; and KIND=MODEL, where KIND is one of "
        f"{', '.join([*KINDS, *GLUE_TASKS])}."
    )
