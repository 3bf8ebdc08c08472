"""Folders of sentence-transformers, opened whole: a transformer, and what is behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from stat_prune.checkpoints.beside import (
    Encoder,
    download_beside,
    encoder_above,
    encoder_around,
    local_copy,
    name_model,
)
from stat_prune.checkpoints.loading_checks import check_complete, check_layers
from stat_prune.errors import LoadError
from stat_prune.model import modeling_stat_prune
from stat_prune.model.whole_encoders import KINDS, transformer_of


def find_encoder(name: str) -> Encoder | None:
    """The sentence encoder, sparse encoder or reranker that a folder or repository holds, if one.

    Of a repository of the Hub what lies beside the weights is fetched.
    """
    if os.path.isdir(name):
        folder = Path(os.path.realpath(name))
        return encoder_around(folder) or encoder_above(folder)
    download_beside(name)
    source = local_copy(name)
    return None if source is None else encoder_around(source)


def folder_of_transformer(name: str, encoder: Encoder | None) -> str:
    """Where the transformer of an encoder lies; the name itself, of what is no encoder or there."""
    if encoder is None or not os.path.isdir(name):
        return name
    there = os.path.realpath(encoder.transformer)
    return name if os.path.realpath(name) == there else there


def transformer_in(name: str) -> str:
    """`folder_of_transformer` of whatever a name stands for."""
    return folder_of_transformer(name, find_encoder(name) if os.path.isdir(name) else None)


def open_encoder(name: str, encoder: Encoder) -> nn.Module:
    """A model of sentence-transformers on the CPU, by that library, with no code of its folder.

    Parameters
    ----------
    name : str
        The folder, of the encoder or of its transformer alone, or the name on the Hub.
    encoder : Encoder
        What `find_encoder` says of it.

    Raises
    ------
    LoadError
        If the library is not installed or has no such class, or does not open it; if a weight is
        missing.
    """
    try:
        library = import_module("sentence_transformers")
    except ImportError as error:
        raise LoadError(
            "sentence-transformers is not installed (pip install sentence-transformers)"
        ) from error
    if encoder.kind not in KINDS or not hasattr(library, encoder.kind):
        raise LoadError(f"of its kinds {', '.join(KINDS)} are opened")
    local = os.path.isdir(name)
    if local:
        check_layers(encoder.transformer)
    place = str(encoder.folder) if local else name
    how = {"device": "cpu", "trust_remote_code": False, "local_files_only": local}
    try:
        with _own_classes(safe=local):
            whole: nn.Module = getattr(library, encoder.kind)(place, **how)
            transformer = transformer_of(whole)
    except Exception as error:  # of every kind, as what is read is anyone's
        raise LoadError(f"sentence-transformers does not open it: {error}") from error
    if local:
        name_model(transformer, folder_of_transformer(name, encoder))
    return whole


@contextmanager
def _own_classes(*, safe: bool) -> Iterator[None]:
    """Have all that is loaded checked, and made of classes here where its layers differ in size.

    sentence-transformers would run the folder's copy of the modeling file for these, and takes no
    model that is loaded already. `safe` refuses pickled weights.
    """
    loading: Any = PreTrainedModel
    stock = vars(loading)["from_pretrained"]

    def from_pretrained(
        cls: Any, /, name: Any, *args: Any, config: Any = None, **options: Any
    ) -> Any:
        made_of = modeling_stat_prune.pruned_class(cls) if _is_pruned(config) else cls
        options |= {"output_loading_info": True} | ({"use_safetensors": True} if safe else {})
        model, found = stock.__func__(made_of, name, *args, config=config, **options)
        check_complete(model, found, name)
        modeling_stat_prune.align_weights(model)
        return model

    loading.from_pretrained = classmethod(from_pretrained)
    try:
        yield
    finally:
        loading.from_pretrained = stock


def _is_pruned(config: Any) -> bool:
    return bool(getattr(config, "stat_prune", None))
