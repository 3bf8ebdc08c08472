"""Load any checkpoint, pruned or not, as the class that its config names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.beside import download_beside
from stat_prune.checkpoints.loading import load
from stat_prune.errors import LoadError, SettingsError
from stat_prune.model import modeling_stat_prune
from stat_prune.model.processors import processor_classes

#: What a tokenizer is saved in, by whichever library.
_TOKENIZER_FILES = (
    *("*token*", "vocab*", "merges.txt", "*.model", "*.vocab", "*.codes", "tekken.json"),
    "*.tiktoken",
)


def load_pretrained(name: str) -> PreTrainedModel:
    """Load a model from a folder or the Hub, in the dtype that it was saved in.

    Raises
    ------
    LoadError
        If there is none of that name, the Hub cannot be reached, or its class is unknown.
    """
    if os.path.isdir(name):
        return load(name)
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # of every kind, as what is read is anyone's
        raise LoadError(
            f"{name!r} is neither a folder nor a model that could be loaded from the Hub: {error}"
        ) from error
    pruned = bool(getattr(config, "stat_prune", None))
    architecture = next(iter(config.architectures or ()), "")
    architecture = architecture.removeprefix(modeling_stat_prune.PREFIX)
    if not hasattr(transformers, architecture):
        raise LoadError(
            f"The config of {name!r} names the architecture {architecture!r}, which transformers "
            "does not have. Load the model in Python and call stat_prune.prune."
        )
    model_class = getattr(modeling_stat_prune if pruned else transformers, architecture)
    try:
        model: PreTrainedModel = model_class.from_pretrained(name, config=config)
    except Exception as error:
        raise LoadError(f"{name!r} cannot be loaded from the Hub: {error}") from error
    download_beside(name)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer saved with a model; None where there is none.

    Raises
    ------
    LoadError
        If its files are damaged.
    """
    folder = Path(name) if os.path.isdir(name) else None
    # Of a config alone transformers makes a tokenizer that knows no words.
    if folder is not None and not any(any(folder.glob(files)) for files in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of every kind, as the formats are many
        if folder is None and isinstance(error, OSError | ValueError | KeyError):
            return None
        raise LoadError(
            f"The tokenizer in {name!r} cannot be loaded: {error}. Save it there again, or pass "
            "another one."
        ) from error


def given_tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that an argument is, or names by its folder or its name on the Hub.

    What makes inputs of another kind (`stat_prune.model.processors`) may stand in its place.

    Raises
    ------
    LoadError, SettingsError
        If there is none, or it is something else.
    """
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
