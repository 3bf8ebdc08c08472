"""Published methods against what their authors' own code made of the same checkpoints.

One task of three, on fewer examples than theirs, for the time it takes; docs/results.md has all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import stat_prune
from stat_prune import MACs
from stat_prune.data.glue_tasks import GLUE_TASKS
from stat_prune.evaluation import evaluate_glue, read_glue

#: Of github.com/WoosukKwon/retraining-free-pruning (its mask search alone) and
#: github.com/snudm-starlab/K-prune: kept MACs, accuracy on MRPC dev, and examples to read here.
FIGURES = {"fisher-untuned": (0.6, 0.8015, 256), "kprune": (0.5, 0.8039, 128)}


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("method", FIGURES)
def test_the_score_is_the_authors_within_its_standard_error(method: str, real_data: Path) -> None:
    kept, theirs, count = FIGURES[method]
    folder, glue = real_data / "models" / "minilm-mrpc", real_data / "data" / "glue"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train = read_glue("mrpc", glue, split="train")
    examples = [
        {"sentence1": one, "sentence2": other, "label": int(label)}
        for (one, other), label in zip(train.texts, train.labels, strict=True)
    ]
    result = stat_prune.prune(
        model,
        examples,
        tokenizer=tokenizer,
        target=MACs(kept, seq_length=GLUE_TASKS["mrpc"].average_length),
        method=method,
        num_calibration_samples=count,
        inplace=True,
        progress=False,
    )
    dev = read_glue("mrpc", glue)
    ours = evaluate_glue(result.model, tokenizer, "mrpc", dev)["accuracy"]
    assert abs(ours - theirs) <= (theirs * (1 - theirs) / len(dev.texts)) ** 0.5
