"""Load any checkpoint, pruned or not, as the class that its config names."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stat_prune.checkpoints.beside import download_beside, is_headless_encoder, local_copy
from stat_prune.checkpoints.encoder_folders import find_encoder, open_encoder, transformer_in
from stat_prune.checkpoints.loading import class_of, load
from stat_prune.checkpoints.loading_checks import check_complete
from stat_prune.errors import LoadError, ModelWarning, SettingsError
from stat_prune.model.processors import processor_classes

#: What a tokenizer is saved in, by whichever library.
_TOKENIZER_FILES = (
    *("*token*", "vocab*", "merges.txt", "*.model", "*.vocab", "*.codes", "tekken.json"),
    "*.tiktoken",
)


def open_model(name: str) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """Whatever a folder or repository holds, and its tokenizer, if it has one.

    A sentence encoder, sparse encoder or reranker is opened whole; where sentence-transformers
    does not do that, its transformer alone, with a `ModelWarning`.

    Raises
    ------
    LoadError
        As `load_pretrained` and `load_tokenizer`.
    """
    encoder = find_encoder(name)
    if encoder is not None:
        try:
            whole: Any = open_encoder(name, encoder)
            return whole, whole.tokenizer
        except LoadError as error:
            warnings.warn(
                f"{name} is a {encoder.kind}, of which only the transformer is opened: "
                f"{str(error).rstrip('.')}. What is behind that stays as it is, and nothing is "
                "known of it.",
                ModelWarning,
                stacklevel=3,
            )
    return load_pretrained(name), load_tokenizer(name)


def load_pretrained(name: str, auto_class: str | None = None) -> PreTrainedModel:
    """Load a model from a folder or the Hub, in the dtype that it was saved in.

    Of a sentence encoder's folder that is its transformer, which may lie in a folder of its own
    there. `auto_class` is the kind of model to make of it (`stat_prune.load`).

    Raises
    ------
    LoadError
        If there is none of that name, the Hub cannot be reached, its class is unknown, or a weight
        is missing.
    """
    if os.path.isdir(name):
        return load(transformer_in(name), auto_class=auto_class)
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # of every kind, as what is read is anyone's
        raise LoadError(
            f"{name!r} is neither a folder nor a model that could be loaded from the Hub: {error}"
        ) from error
    download_beside(name)
    try:
        return _from_hub(name, config, auto_class)
    except LoadError:
        source = local_copy(name)
        if auto_class is not None or source is None or not is_headless_encoder(source):
            raise
    # The config of a sentence encoder may name a head that it was saved without.
    return _from_hub(name, config, "AutoModel")


def _from_hub(name: str, config: PreTrainedConfig, auto_class: str | None) -> PreTrainedModel:
    try:
        model, found = class_of(config, auto_class).from_pretrained(
            name, config=config, output_loading_info=True
        )
    except LoadError:
        raise
    except Exception as error:  # of every kind, as what is read is anyone's
        raise LoadError(f"{name!r} cannot be loaded from the Hub: {error}") from error
    check_complete(model, found, name, new_head=auto_class is not None)
    return cast(PreTrainedModel, model)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer saved with a model, or with its transformer; None where there is none.

    Raises
    ------
    LoadError
        If its files are damaged.
    """
    name = transformer_in(name)
    folder = Path(name) if os.path.isdir(name) else None
    # Of a config alone transformers makes a tokenizer that knows no words.
    if folder is not None and not any(any(folder.glob(files)) for files in _TOKENIZER_FILES):
        return None
    try:
        found = AutoTokenizer.from_pretrained(name)
        return None if folder is None and not knows_words(found) else found
    except Exception as error:  # of every kind, as the formats are many
        if folder is None and isinstance(error, OSError | ValueError | KeyError):
            return None
        raise LoadError(
            f"The tokenizer in {name!r} cannot be loaded: {error}. Save it there again, or pass "
            "another one."
        ) from error


def knows_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there is more in a tokenizer's vocabulary than special tokens."""
    return len(tokenizer.get_vocab()) > len(set(tokenizer.all_special_tokens))


def given_tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that an argument is, or names by its folder or its name on the Hub.

    What makes inputs of another kind (`stat_prune.model.processors`) may stand in its place.

    Raises
    ------
    LoadError, SettingsError
        If there is none, or it is something else.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase) and not knows_words(tokenizer):
        raise SettingsError(
            f"The {type(tokenizer).__name__} that was given as `tokenizer` knows no words: "
            "transformers makes such a one for a folder or repository without a tokenizer's files. "
            "Load it from where the model's own tokenizer is."
        )
    if tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if isinstance(tokenizer, processor_classes()):
        return cast(PreTrainedTokenizerBase, tokenizer)
    if isinstance(tokenizer, str | os.PathLike):
        found = load_tokenizer(os.fspath(tokenizer))
        if found is None:
            raise LoadError(
                f"No tokenizer can be loaded from {os.fspath(tokenizer)!r}. Pass its folder, its "
                "name on the Hub, or AutoTokenizer.from_pretrained(...)."
            )
        return found
    inside = isinstance(getattr(tokenizer, "tokenizer", None), PreTrainedTokenizerBase)
    raise SettingsError(
        f"`tokenizer` must be a tokenizer or processor of transformers, got "
        f"{type(tokenizer).__name__}. "
        + ("Did you mean its .tokenizer?" if inside else "Pass AutoTokenizer.from_pretrained(...).")
    )
