"""Short runs of `vib_finetune`, and data for them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from tiny_models import tiny_bert
from transformers import BertForSequenceClassification, PreTrainedModel

from stat_prune.vib import MODES, VIBConfig, vib_finetune

#: Short, with noise that leaves traces at once.
SHORT: dict[str, Any] = {"mask_steps": 6, "batch_size": 8, "initial_log_variance": -3.0}


def short(mode: str = "full", **fields: Any) -> VIBConfig:
    steps = {} if mode == "masks" else {"finetune_steps": 3}
    return replace(MODES[mode], **SHORT | steps | fields)


def sequences(count: int = 48, *, labels: bool = False) -> list[dict[str, Any]]:
    """Random ids of 5 to 14 tokens; the label tells whether the second is large."""
    source = random.Random(0)
    rows = [
        {"input_ids": [2, *source.choices(range(5, 64), k=source.randint(3, 12)), 3]}
        for _ in range(count)
    ]
    return [row | {"labels": int(row["input_ids"][1] > 34)} if labels else row for row in rows]


def classifier(**config: Any) -> PreTrainedModel:
    return tiny_bert(BertForSequenceClassification, **config)


def finetune(model: PreTrainedModel, target: Any, data: Any = None, **settings: Any):
    """`vib_finetune`, by default on unlabelled sequences, in silence."""
    data = sequences() if data is None else data
    settings = {"mode": short(), "progress": False} | settings
    return vib_finetune(model, data, target=target, **settings)
