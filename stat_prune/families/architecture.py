"""What a model family is to the pruner: where its heads and neurons are made and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig

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
    removable : bool
        Whether all heads can leave together: `module` then returns what `output` makes of nothing,
        or nothing where `output` is outside of it, and no attention weights.
    name : str
        Last part of the block's name; unique in a layer.
    optional : bool
        Whether some layers lack it.
    cross : bool
        Whether it attends to what the first stack of layers returns.
    position_producers : tuple of str
        Linear layers, where they exist, that make channels of the heads from relative positions.
    position_macs : callable, optional
        ``(config)`` to the multiply-accumulates that relative positions add for each channel of
        the heads: once a sequence, and once a token.
    position_bias : {"own", "all heads"}, optional
        Where a bias that depends on position and head is added to the scores: ``"own"``, the
        module can have its own, as the first layer's has, and passes on what it used; ``"all
        heads"``, it is given one for all heads of the dense model.
    own_dims : {"all", "values"}, optional
        Which dimensions inside heads can leave: those of queries and keys too, or those of values
        alone, as where norms are over a head. `module` computes as Llama's does, or as BERT's,
        BART's, T5's or GPT-2's, with layers of names that the modeling file knows, and remembers
        the scale of its scores.
    rotary : str, optional
        Path, below the base model, of the module with the frequencies by which queries and keys
        are turned.
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
    removable: bool = True
    name: str = "heads"
    optional: bool = False
    cross: bool = False
    position_producers: tuple[str, ...] = ()
    position_macs: Callable[[Any], tuple[float, float]] | None = None
    position_bias: Literal["own", "all heads"] | None = None
    own_dims: Literal["all", "values"] | None = None
    rotary: str | None = None

    @property
    def query_key_multiple(self) -> int:
        """Of what numbers of query/key dimensions are multiples: rotary embeddings turn pairs."""
        return 1 if self.rotary is None else 2


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
class Signal:
    """An input that is no text, and the positions that a stack of layers makes of it.

    Attributes
    ----------
    name : str
        Argument of the model's ``forward``: ``"pixel_values"`` or ``"input_features"``.
    positions : callable
        ``(config, shape)`` to the number of positions, for the shape of one example.
    """

    name: str
    positions: Callable[[Any, torch.Size], int]


@dataclass(frozen=True)
class Architecture:
    """Where the blocks of a model family are: a stack of layers, and further stacks.

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
        of the family differ. It raises a `ModelError` where that one cannot be pruned.
    mask : str
        The entry of a batch that says which tokens of the stack are real: ``"attention_mask"``, or
        ``"decoder_attention_mask"`` behind an encoder. Any other name for a signal.
    signal : Signal, optional
        What the stack reads, where it is no text.
    other_stacks : tuple of Architecture
        Descriptions of further stacks, in the order in which they run: a decoder behind the
        encoder, the second of two towers. Those that a model lacks are passed over.
    calls : callable, optional
        ``(config, index)`` to how often a forward pass runs the layer of that index, where layers
        share weights.
    embedding_projection : str, optional
        Path, below the base model, of the linear layer that brings token embeddings to the width of
        the layers, in models that have one.
    """

    model_types: tuple[str, ...]
    layers: str
    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    causal: bool = False
    positions_after_padding: bool = False
    variant: Callable[[Architecture, Any], Architecture] | None = None
    mask: str = "attention_mask"
    signal: Signal | None = None
    other_stacks: tuple[Architecture, ...] = ()
    calls: Callable[[Any, int], int] | None = None
    embedding_projection: str | None = None

    def max_positions(self, config: PreTrainedConfig) -> int | None:
        """Tokens of the longest sequence that a model of this config takes; None if it is open."""
        text = getattr(config, "text_config", config)
        names = ("max_position_embeddings", "max_target_positions")
        limit = next((getattr(text, name) for name in names if hasattr(text, name)), None)
        if limit is not None and self.positions_after_padding:
            limit -= text.pad_token_id + 1
        return limit

    def with_attention(self, **fields: Any) -> Architecture:
        """The description with other values in each of its attentions."""
        return replace(self, attentions=tuple(replace(a, **fields) for a in self.attentions))

    def with_feed_forward(self, **fields: Any) -> Architecture:
        """The description with other values in each of its feed-forward networks."""
        return replace(self, feed_forwards=tuple(replace(f, **fields) for f in self.feed_forwards))
