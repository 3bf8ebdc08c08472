"""What comes behind the transformer of a sentence encoder, as a part of one network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.checkpoints.beside import encoder_of, source_of

#: How one vector is made of those of the tokens.
WAYS = ("mean", "cls", "max")


class SentenceEncoder(nn.Module):
    """A transformer with the pooling, and perhaps the normalization, of its folder."""

    def __init__(self, model: PreTrainedModel, way: str, normalized: bool) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.way = way
        self.normalized = normalized

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor
    ) -> dict[str, Tensor]:
        """The states of all tokens, and the vector of each sequence."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **others)[0]
        mask = attention_mask[..., None].to(states.dtype)
        if self.way == "cls":
            pooled = states[:, 0]
        elif self.way == "max":
            pooled = states.masked_fill(mask == 0, torch.finfo(states.dtype).min).amax(1)
        else:
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        if self.normalized:
            pooled = nn.functional.normalize(pooled, dim=-1)
        return {"last_hidden_state": states, "sentence_embedding": pooled}


def with_pooling(model: PreTrainedModel) -> tuple[nn.Module, list[str]]:
    """The whole sentence encoder that a model was loaded as the transformer of; and notes.

    A model of no sentence encoder, or of one with other modules, is returned as it is.
    """
    source = source_of(model)
    encoder = None if source is None else encoder_of(source, model)
    if encoder is None or model.base_model is not model:
        return model, []
    modules = encoder.modules[1:]
    kinds = [one["type"].rpartition(".")[2] for one in modules]
    way = _way(encoder.folder / modules[0]["path"]) if kinds[:1] == ["Pooling"] else None
    if way is None or kinds[1:] not in ([], ["Normalize"]):
        return model, [
            "the graph ends with the states of the tokens: what is behind them in "
            f"{encoder.folder.name} ({', '.join(kinds)}) is not {', '.join(WAYS)} pooling alone"
        ]
    return SentenceEncoder(model, way, "Normalize" in kinds), []


def _way(folder: Path) -> str | None:
    """How a folder of sentence-transformers says that tokens are pooled; None if in other ways."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    said = [
        names.get(name.removeprefix("pooling_mode_"), name)
        for name, value in content.items()
        if name.startswith("pooling_mode_") and value is True
    ]
    said = said or [content.get("pooling_mode", "mean")]
    return said[0] if len(said) == 1 and said[0] in WAYS else None
