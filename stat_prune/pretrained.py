"""Load any checkpoint, pruned or not, as the class that its config names."""

from __future__ import annotations

import os

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stat_prune import modeling_stat_prune
from stat_prune.errors import LoadError
from stat_prune.loading import load
from stat_prune.sentence_modules import download_sentence_modules


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
    except (OSError, ValueError) as error:
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
        model = model_class.from_pretrained(name, config=config)
    except (OSError, ValueError, RuntimeError) as error:
        raise LoadError(f"{name!r} cannot be loaded from the Hub: {error}") from error
    if model.base_model is model:
        download_sentence_modules(name)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer saved with a model; None where there is none."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError):
        return None
