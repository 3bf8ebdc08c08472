"""The registry of model families, and what it says of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from stat_prune.errors import ModelError, UnsupportedArchitectureError
from stat_prune.families.architecture import Architecture, Attention

_REGISTRY: dict[str, Architecture] = {}

#: What was inferred of models of other families, by what of a model it depends on (`_code_of`).
_INFERRED: dict[Any, Architecture] = {}

#: Entries of a config that say nothing of the code, or differ between a model and pruned copies.
_NOT_OF_ITS_CODE = (
    "stat_prune",
    "per_layer_config",
    "allow_global_per_layer_attribute_access",
    "auto_map",
    "architectures",
    "dtype",
    "transformers_version",
)

#: What is being tried, likewise; it goes before all else.
_TRIED: dict[Any, Architecture] = {}


def register_architecture(architecture: Architecture) -> None:
    """Make a family known to `prune`, under each of its model types.

    A family that was known under one of them is replaced.

    Parameters
    ----------
    architecture : Architecture
    """
    for model_type in architecture.model_types:
        _REGISTRY[model_type] = architecture


def supported_model_types() -> list[str]:
    """Values of ``config.model_type`` that can be pruned, sorted."""
    return sorted(_REGISTRY)


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The description of a model's family, as it is for this model.

    Raises
    ------
    UnsupportedArchitectureError
        If ``model.config.model_type`` is not registered, and no description was inferred
        (`stat_prune.inferring.describe`).
    """
    architecture = known_architecture(model)
    if architecture is None:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} is of a family (model_type {model.config.model_type!r}) that "
            "is not registered. Describe it with stat_prune.register_architecture(...), which may "
            "be given what stat_prune.infer_architecture(model) finds. Registered model types: "
            f"{', '.join(supported_model_types())}."
        )
    return architecture


def known_architecture(model: PreTrainedModel) -> Architecture | None:
    """As `architecture_of`; None where nothing is known of the family."""
    if _TRIED and (tried := _TRIED.get(_code_of(model))) is not None:
        return tried
    config = getattr(model, "config", None)
    architecture = _REGISTRY.get(getattr(config, "model_type", ""))
    if architecture is None:
        return _INFERRED.get(_code_of(model)) if _INFERRED else None
    return architecture.variant(architecture, config) if architecture.variant else architecture


def remember(model: PreTrainedModel, architecture: Architecture) -> None:
    """Let a description be in force for a model and its copies, where none is yet."""
    if known_architecture(model) is None:
        _INFERRED[_code_of(model)] = architecture


@contextmanager
def describing(model: PreTrainedModel, architecture: Architecture) -> Iterator[None]:
    """Inside, this description is in force for a model and its copies, registered or not."""
    key = _code_of(model)
    _TRIED[key] = architecture
    try:
        yield
    finally:
        del _TRIED[key]


def _code_of(model: PreTrainedModel) -> tuple[type[nn.Module], str]:
    """What decides which code a model runs, and on which sizes: its class and its config.

    Copies and pruned copies have it in common, as sizes that differ from the config's are in a
    record apart.
    """
    config = model.config.to_dict()
    for name in _NOT_OF_ITS_CODE:
        config.pop(name, None)
    base: Any = type(model.base_model)
    if base.__module__.rpartition(".")[2] == "modeling_stat_prune":
        base = base.__mro__[1]
    return base, json.dumps(config, sort_keys=True, default=str)


def stacks_of(model: PreTrainedModel) -> list[tuple[Architecture, nn.ModuleList]]:
    """The stacks of layers that a model has, with their descriptions, in the order they run.

    Raises
    ------
    UnsupportedArchitectureError
        If the family is unknown.
    ModelError
        If the model has none of the stacks that its family is described with.
    """
    architecture, base = architecture_of(model), model.base_model
    stacks = []
    for stack in (architecture, *architecture.other_stacks):
        try:
            layers = base.get_submodule(stack.layers)
        except AttributeError:
            continue
        assert isinstance(layers, nn.ModuleList)
        stacks.append((stack, layers))
    if not stacks:
        raise ModelError(
            f"{type(model).__name__} has no layers at {architecture.layers!r} below its base model "
            f"{type(base).__name__}, where its family has them. Pass the whole model, or upgrade "
            f"transformers if this family has changed ({transformers.__version__} is installed)."
        )
    return stacks


def attentions_of(model: PreTrainedModel) -> dict[str, Attention]:
    """The descriptions of a model's attention layers, by name; of alike named ones the last."""
    return {one.name: one for stack, _ in stacks_of(model) for one in stack.attentions}


def transformer_layers(model: PreTrainedModel) -> list[nn.Module]:
    """A model's layers, in the order in which they run."""
    return [layer for _, layers in stacks_of(model) for layer in layers]
