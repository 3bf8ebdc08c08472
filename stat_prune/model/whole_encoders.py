"""Models of sentence-transformers: a transformer, and what makes embeddings or scores behind it.

That library is not imported here: where there is such a model, it is there already.
"""

from __future__ import annotations

import copy
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.errors import ModelError

#: Its classes that hold one transformer which reads texts.
KINDS = ("SentenceTransformer", "CrossEncoder", "SparseEncoder")


def encoder_kind(model: object) -> str | None:
    """Which of `KINDS` a model is, of a subclass too; None if none."""
    for one in type(model).__mro__:
        if one.__name__ in KINDS and one.__module__.partition(".")[0] == "sentence_transformers":
            return one.__name__
    return None


def transformer_of(model: nn.Module) -> PreTrainedModel:
    """The transformer in a model of sentence-transformers; any other model as it is.

    Raises
    ------
    ModelError
        If there is not exactly one.
    """
    if encoder_kind(model) is None:
        return cast(PreTrainedModel, model)
    found = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not found:
        raise ModelError(
            f"This {type(model).__name__} holds no model of transformers: it has static embeddings "
            "or another backend. Load it with backend='torch' where that can be."
        )
    first = found[0]
    others = set(found) - set(first.modules())
    if others:
        raise ModelError(
            f"This {type(model).__name__} holds {1 + len(others)} transformers. Prune each by "
            "itself with inplace=True, and save the whole by its own save_pretrained."
        )
    return first


def tokenizer_of(whole: nn.Module) -> PreTrainedTokenizerBase:
    """The tokenizer that a model of sentence-transformers reads with.

    Raises
    ------
    ModelError
        If it has none, or several parts that read with one of their own.
    """
    kind, given = type(whole).__name__, cast(Any, whole).tokenizer
    if not isinstance(given, PreTrainedTokenizerBase):
        raise ModelError(
            f"This {kind} has no tokenizer of transformers. Set the one of its transformer, or "
            "pass transformer and tokenizer by themselves."
        )
    reading = [one for one in whole.modules() if {"tokenizer", "processor"} & vars(one).keys()]
    if len(reading) > 1:
        raise ModelError(
            f"{len(reading)} parts of this {kind} read with a tokenizer of their own "
            f"({', '.join(type(one).__name__ for one in reading)}), which would have to change "
            "together. Leave its vocabulary whole, or take one part by itself."
        )
    return given


def with_transformer(
    whole: nn.Module, pruned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
) -> nn.Module:
    """A copy of a model of sentence-transformers around a pruned transformer.

    The model itself, where its transformer was pruned in place. With `tokenizer`, that stands in
    the place of its own.
    """
    dense = transformer_of(whole)
    if pruned is dense:
        return whole
    replaced: dict[int, Any] = {id(dense): pruned}
    if tokenizer is not None:
        replaced[id(tokenizer_of(whole))] = tokenizer
    made: Any = copy.deepcopy(whole, replaced)
    if getattr(pruned.config, "stat_prune", None):
        made.trust_remote_code = True  # its trainer opens its own checkpoints with it
    return cast(nn.Module, made)
