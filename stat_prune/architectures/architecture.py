"""What a model family is to the pruner: where its heads and neurons are made and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from stat_prune.errors import UnsupportedArchitectureError

#: What a module may remember of a pruned block.
Count = Literal["heads", "groups", "channels", "heads_per_group", "neurons"]


@dataclass(frozen=True)
class Attention:
    """An attention sublayer; all paths are relative to one layer.

    Attributes
    ----------
    module : str
        The module that remembers head counts.
    query, key, value : str
        Linear layers. One path for all three: they are fused in one layer.
    output : str
        The consumer of the heads.
    head_size : str
        Attribute of `module` with the size of one head.
    counts : mapping of str to {"heads", "groups", "channels", "heads_per_group"}
        Attributes of `module` that must follow the number of query heads, of key/value heads, of
        channels, or of query heads a key/value head. ``"config.x"``: the module reads ``x`` from
        the model's config, and gets one of its own.
    interleaved : bool
        Whether a fused layer has query, key and value head by head, rather than all queries, then
        all keys, then all values.
    config_heads : tuple of three str, optional
        Fields of the config with the numbers of heads, of key/value heads, and the head size,
        where it can say them independently of the hidden size.
    stream_after : str, optional
        The module whose input is the residual stream with the output added. None: what the layer
        returns is.
    adds_to_stream : bool
        Whether the output is added to the residual stream as it is, with no norm or gate between.
    fixed : str
        Why heads cannot leave; they then stay and count. ``""``: they can.
    name : str
        Last part of the block's name; unique in a layer.
    optional : bool
        Whether some layers lack it.
    """

    module: str
    query: str
    key: str
    value: str
    output: str
    head_size: str
    counts: Mapping[str, Count] = field(default_factory=dict)
    interleaved: bool = False
    config_heads: tuple[str, str, str] | None = None
    stream_after: str | None = None
    adds_to_stream: bool = True
    fixed: str = ""
    name: str = "heads"
    optional: bool = False


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward sublayer; all paths are relative to one layer.

    Attributes
    ----------
    inputs : tuple of str
        Linear layers with one output row a neuron: two where the network is gated, the gate first.
        One path twice: both are fused in one layer.
    output : str
        The consumer of the neurons.
    config_neurons : str, optional
        Field of the config with the number of neurons, where it has one.
    experts_per_token : str
        Field of the config with the number of experts that a token goes through. `inputs` and
        `output` are then parameters of shape (experts, out_features, in_features) of one module,
        which is called with hidden states, indices and weights of the chosen experts. ``""`` for an
        ordinary network.
    counts : mapping of str to {"neurons"}
        Attributes, of the module that has `output`, that must follow the number of neurons.
    stream_after, adds_to_stream, name, optional
        As for `Attention`.
    """

    inputs: tuple[str, ...]
    output: str
    config_neurons: str | None = None
    experts_per_token: str = ""
    counts: Mapping[str, Count] = field(default_factory=dict)
    stream_after: str | None = None
    adds_to_stream: bool = True
    name: str = "neurons"
    optional: bool = False


@dataclass(frozen=True)
class Architecture:
    """Where the blocks of a model family are.

    Attributes
    ----------
    model_types : tuple of str
        Values of ``config.model_type`` that this describes.
    layers : str
        Path of the list of layers below the base model.
    attentions : tuple of Attention
        Of one layer, in the order in which they run.
    feed_forwards : tuple of FeedForward
        Likewise; they run after the attentions, or beside them.
    causal : bool
        Whether the family is of decoders, which see only what comes before.
    positions_after_padding : bool
        Whether position embeddings are counted from the id of padding, as in fairseq: those up to
        it stand for no token.
    variant : callable, optional
        From this description and a model's config to the description of that model, where models
        of the family differ.
    """

    model_types: tuple[str, ...]
    layers: str
    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    causal: bool = False
    positions_after_padding: bool = False
    variant: Callable[[Architecture, Any], Architecture] | None = None

    def max_positions(self, config: PreTrainedConfig) -> int | None:
        """Tokens of the longest sequence that a model of this config takes; None if it is open."""
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and self.positions_after_padding:
            limit -= config.pad_token_id + 1
        return limit

    def with_attention(self, **fields: Any) -> Architecture:
        """The description with other values in each of its attentions."""
        return replace(self, attentions=tuple(replace(a, **fields) for a in self.attentions))

    def with_feed_forward(self, **fields: Any) -> Architecture:
        """The description with other values in each of its feed-forward networks."""
        return replace(self, feed_forwards=tuple(replace(f, **fields) for f in self.feed_forwards))


_REGISTRY: dict[str, Architecture] = {}


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
        If ``model.config.model_type`` is not registered.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type not in _REGISTRY:
        raise UnsupportedArchitectureError(
            f"Cannot prune {type(model).__name__} (model_type {model_type!r}). Supported model "
            f"types: {', '.join(supported_model_types())}. To add one, describe where its linear "
            "layers are: stat_prune.register_architecture(stat_prune.Architecture(...))."
        )
    architecture = _REGISTRY[model_type]
    return architecture.variant(architecture, config) if architecture.variant else architecture


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of a model's layers, in the order in which they run."""
    layers = model.base_model.get_submodule(architecture_of(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers
