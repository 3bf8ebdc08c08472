"""Tiny encoders with task heads, sentences to calibrate on, and a run that stands ready."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.budget.costs import Budget
from stat_prune.pipeline.budgeting.budgets import resolve
from stat_prune.pipeline.run import Run, start_run
from stat_prune.settings.settings import Settings
from stat_prune.settings.targets import Target

BERT = {
    "vocab_size": 64,
    "pad_token_id": 0,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": BERT,
    "Electra": BERT | {"embedding_size": 16},
    "DistilBert": {
        "vocab_size": 64,
        "pad_token_id": 0,
        "dim": 24,
        "n_heads": 4,
        "n_layers": 3,
        "hidden_dim": 32,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
}


def build(
    family: str = "Bert", head: str = "ForSequenceClassification", **config: Any
) -> PreTrainedModel:
    """A tiny model, the same at each call; weights large enough that its units differ."""
    torch.manual_seed(0)
    configuration = getattr(transformers, f"{family}Config")(**CONFIGS[family], **config)
    model = getattr(transformers, family + head)(configuration).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def rows(count: int = 60, *, labels: list[float] | None = None) -> list[dict[str, Any]]:
    """Random token ids of 3 to 14 tokens, with labels on request."""
    source = random.Random(0)
    return [
        {"input_ids": [2, *source.choices(range(5, 64), k=source.randint(1, 12)), 3]}
        | ({} if labels is None else {"labels": labels[index]})
        for index in range(count)
    ]


@contextmanager
def ready(model: PreTrainedModel, data: Any = None, **settings: Any) -> Iterator[Run]:
    """A run on `rows`, in silence."""
    chosen = Settings(**{"batch_size": 16, "progress": False} | settings)
    with start_run(model, rows() if data is None else data, None, chosen) as run:
        yield run


@torch.no_grad()
def logits(model: PreTrainedModel, run: Run) -> Tensor:
    """Of every calibration example, in order."""
    outputs = [
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for batch in run.calibration.batches
    ]
    return torch.cat(outputs)


def budget_for(run: Run, target: Target) -> Budget:
    """Of one target."""
    (budget,) = resolve(run, [target])
    return budget


def inputs_of(model, block, batches) -> torch.Tensor:
    """What the block's consumer reads, of tokens that are no padding; (tokens, m), float64."""
    read = []
    consumer = model.base_model.get_submodule(block.consumer)
    handle = consumer.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]
    return torch.cat([one[mask] for one, mask in zip(read, masks, strict=True)]).double()
