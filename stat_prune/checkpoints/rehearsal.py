"""Save all but the weights before any work: what cannot be saved is known then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from stat_prune.checkpoints.checkpoint import check_class
from stat_prune.errors import SaveError


def check_can_be_saved(
    model: PreTrainedModel, tokenizer: Any = None, *, recorded: bool = True
) -> None:
    """Refuse a model whose class, config, generation config or tokenizer cannot be saved.

    `recorded` says whether the result will have a record of layer sizes, for which its class has to
    be known.

    Raises
    ------
    SaveError
        Saying which, and why.
    """
    if recorded:
        check_class(model)
    with TemporaryDirectory() as name:
        folder = Path(name)
        _try("config", lambda: _save_config(model.config, folder))
        if model.can_generate():
            _try("generation_config", lambda: model.generation_config.save_pretrained(folder))
        if tokenizer is not None:
            _try("tokenizer", lambda: tokenizer.save_pretrained(folder))


def _save_config(config: PreTrainedConfig, folder: Path) -> None:
    """Write a config, and read it as whoever loads the model will."""
    copied = copy.deepcopy(config)
    copied.save_pretrained(folder)
    type(copied).from_pretrained(folder)


def _try(what: str, save: Callable[[], Any]) -> None:
    try:
        save()
    except Exception as error:  # whatever transformers has against it
        raise SaveError(
            f"The model's {what} cannot be saved: {error} Mend it before pruning, or leave out the "
            "output directory and save the result in your own way."
        ) from error
