"""Which fields of a config say how many heads and neurons there are: tried on empty models."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stat_prune.families.architecture import Architecture, Attention, FeedForward
from stat_prune.model.projections import projection

_NEURONS = re.compile(r"(?:\w*_)?(?:intermediate_size|ffn_dim|ffn_hidden_size|d_ff)|n_inner")
_HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def with_config_fields(model: PreTrainedModel, architecture: Architecture) -> Architecture:
    """The description with the fields that a model without weights is found to follow.

    They are what lets a result of ``uniform=True`` open in transformers without a flag.
    """
    if getattr(model.config, "stat_prune", None):
        return architecture  # layers of different sizes are no matter of the config
    stacks = [
        replace(
            stack,
            attentions=tuple(_with_heads(model, stack, one) for one in stack.attentions),
            feed_forwards=tuple(_with_neurons(model, stack, one) for one in stack.feed_forwards),
        )
        for stack in (architecture, *architecture.other_stacks)
    ]
    return replace(stacks[0], other_stacks=tuple(stacks[1:]))


def _with_neurons(
    model: PreTrainedModel, stack: Architecture, feed_forward: FeedForward
) -> FeedForward:
    paths = _in_all_layers(model, stack, feed_forward.output)
    for name in filter(_NEURONS.fullmatch, vars(model.config)):
        if _width(model, {name: 24}, paths) == {24}:
            return replace(feed_forward, config_neurons=name)
    return feed_forward


def _with_heads(model: PreTrainedModel, stack: Architecture, attention: Attention) -> Attention:
    if attention.fixed or not all(isinstance(getattr(model.config, n, None), int) for n in _HEADS):
        return attention
    paths = _in_all_layers(model, stack, attention.output)
    size = model.config.head_dim
    if _width(model, {_HEADS[0]: 3, _HEADS[1]: 1}, paths) == {3 * size}:
        return replace(attention, config_heads=_HEADS)
    return attention


def _in_all_layers(model: PreTrainedModel, stack: Architecture, path: str) -> list[str]:
    count = len(list(model.base_model.get_submodule(stack.layers).children()))
    return [f"{stack.layers}.{index}.{path}" for index in range(count)]


def _width(
    model: PreTrainedModel, fields: dict[str, int], consumers: Sequence[str]
) -> set[int] | None:
    """What consumers read in a model made of a config with other values; None if it has none."""
    config = copy.deepcopy(model.config)
    make: Callable[[Any], nn.Module] = type(model.base_model)
    try:
        for name, value in fields.items():
            setattr(config, name, value)
        with torch.device("meta"):
            made = make(config)
        return {projection(made, path).weight.shape[1] for path in consumers}
    except Exception:  # whatever a config or a model finds wrong with the values
        return None
