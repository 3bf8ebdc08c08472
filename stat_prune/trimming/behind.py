"""Models of sentence-transformers: what is behind the transformer, and knows of tokens, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.errors import SettingsError
from stat_prune.model.whole_encoders import tokenizer_of, transformer_of, with_transformer
from stat_prune.trimming.rows import ids_in, renumber

#: What modules whose embeddings have a number a token call how many these are.
_WIDTHS = ("embedding_dimension", "word_embedding_dimension")


def check_own(whole: nn.Module, given: PreTrainedTokenizerBase | None) -> None:
    """Refuse a tokenizer that is not the one that a model of sentence-transformers reads with.

    Raises
    ------
    SettingsError
    ModelError
        If it has none, or several.
    """
    own = tokenizer_of(whole)
    if given is None or given is own:
        return
    if given.get_vocab() != own.get_vocab():
        raise SettingsError(
            f"`tokenizer` has other tokens than that of the {type(whole).__name__}, which reads "
            "with its own. Pass None for that."
        )


def tokens_besides(whole: nn.Module) -> list[str]:
    """Those of prompts, and those that modules behind the transformer look for."""
    own = tokenizer_of(whole)
    prompts: Mapping[str, str | None] = getattr(whole, "prompts", None) or {}
    found = [token for prompt in prompts.values() if prompt for token in own.tokenize(prompt)]
    ids = sorted({at for module in _behind(whole) for at in ids_in(module)})
    return found + [str(token) for token in own.convert_ids_to_tokens(ids)]


def with_trimmed(
    whole: nn.Module,
    trimmed: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    new: Mapping[int, int],
) -> nn.Module:
    """A copy around a trimmed transformer, by old and new ids of what its tokenizer has."""
    before = transformer_of(whole).config.get_text_config().vocab_size
    made = with_transformer(whole, trimmed, tokenizer)
    for module in _behind(made):
        renumber(module, new)
        for name in _WIDTHS:
            if type(module).__name__ == "SpladePooling" and vars(module).get(name) == before:
                setattr(module, name, len(new))
    return made


def _behind(whole: Any) -> Iterator[nn.Module]:
    inner = set(transformer_of(whole).modules())
    return (module for module in whole.modules() if module not in inner)
