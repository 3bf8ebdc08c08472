"""Load what was saved: all of it, and nothing else."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from stat_prune.checkpoints.beside import is_headless_encoder
from stat_prune.checkpoints.loading_checks import check_complete, check_layers
from stat_prune.checkpoints.weight_files import keys_in, weight_files
from stat_prune.errors import LoadError
from stat_prune.model import modeling_stat_prune

#: How classes with a head of pre-training end.
HEADS = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForPreTraining")


def load(
    directory: str | os.PathLike[str],
    *,
    auto_class: type | str | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """Load a model saved by `PruningResult.save` or by its own `save_pretrained`.

    Runs no code from the folder: the copy of the modeling file in it is for those who load it
    without stat_prune. A plain, unpruned checkpoint loads too.

    Parameters
    ----------
    directory : path
    auto_class : type or str, optional
        For instance ``"AutoModelForSequenceClassification"``: the kind of model to make of the
        checkpoint, with a new head where it holds none. Default: the class that was saved.
    dtype : torch.dtype or str
        ``"auto"`` for the dtype that was saved.
    device : torch.device or str, optional
        Where to put the model; default the CPU.

    Returns
    -------
    PreTrainedModel
        In evaluation mode; weights bit-equal to those saved, unless `dtype` says otherwise.

    Raises
    ------
    LoadError
        If the folder is missing, damaged, or of a class or format that is not known; if it lacks a
        weight of the model, or has some that the model has no place for; if the weights are
        pickled.
    """
    check_layers(Path(directory))
    config, model_class = saved_class(directory, auto_class)
    try:
        model, found = model_class.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise LoadError(
            f"The weights in {str(directory)!r} are damaged: {error}. Save the model again."
        ) from error
    except Exception as error:  # each model class has checks of its own
        raise LoadError(f"{str(directory)!r} cannot be loaded: {error}") from error
    check_complete(model, found, directory, new_head=auto_class is not None)
    modeling_stat_prune.align_weights(model)
    loaded: PreTrainedModel = model if device is None else model.to(device)
    return loaded


def saved_class(
    directory: str | os.PathLike[str], auto_class: type | str | None = None
) -> tuple[transformers.PreTrainedConfig, Any]:
    """The config in a folder, and the class of the model that it makes.

    Sentence encoders were often saved from the base model of a class that the config still names
    with its head: such a folder holds a base model.

    Raises
    ------
    LoadError
        If the folder or its config is missing or damaged, or of a class that is not known.
    """
    if not os.path.isdir(directory):
        raise LoadError(f"{str(directory)!r} is not a folder. Pass the folder that was saved.")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # each config class has checks of its own
        raise LoadError(
            f"{str(directory)!r} cannot be loaded: its config.json: {error}. Save the model again."
        ) from error
    model_class = class_of(config, auto_class)
    if auto_class is None and _is_without_head(Path(directory), model_class):
        model_class = class_of(config, "AutoModel")
    return config, model_class


def _is_without_head(folder: Path, model_class: type[PreTrainedModel]) -> bool:
    """Whether a sentence encoder's folder lacks the head of the class that its config names."""
    if not model_class.__name__.endswith(HEADS) or not is_headless_encoder(folder):
        return False
    inside = f"{model_class.base_model_prefix}."
    keys = (key for file in weight_files(folder) for key in keys_in(file))
    return not any(key.startswith(inside) for key in keys)


def class_of(config: transformers.PreTrainedConfig, auto_class: type | str | None = None) -> Any:
    """The class of the model that a config makes.

    Raises
    ------
    LoadError
        If it is not known.
    """
    name = _model_class_name(config, auto_class)
    model_class = modeling_stat_prune.stock_class(name, type(config))
    if not inspect.isclass(model_class) or not issubclass(model_class, PreTrainedModel):
        raise LoadError(
            f"The config is of the class {name}, which transformers does not know. "
            "Register it first (AutoConfig.register, AutoModel.register)."
        )
    if getattr(config, "stat_prune", None):
        model_class = modeling_stat_prune.pruned_class(model_class)
    return model_class


def _model_class_name(config: transformers.PreTrainedConfig, auto_class: type | str | None) -> str:
    if auto_class is None:
        names = config.architectures
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise LoadError("config.json names no architecture; pass auto_class=.")
        return names[0]
    known = modeling_stat_prune.auto_classes(type(config))
    name = auto_class if isinstance(auto_class, str) else auto_class.__name__
    if name not in known:
        raise LoadError(
            f"No {name} exists for a model of type {config.model_type!r}; "
            f"auto_class can be one of {', '.join(known)}."
        )
    class_name: str = known[name].__name__
    return class_name
