"""What a model family is to the pruner: the paths of its producers and consumers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from stat_prune.blocks import Block
from stat_prune.errors import ModelError, UnsupportedArchitectureError


@dataclass(frozen=True)
class Architecture:
    """Paths of a family's linear layers; all but `layers` are relative to one layer.

    Attributes
    ----------
    model_types : tuple of str
        Values of ``config.model_type`` that this describes.
    layers : str
        Path of the list of layers below the base model.
    attention : str
        The module that remembers head counts.
    query, key, value, attention_output : str
        Linear layers; `attention_output` is the consumer of the heads.
    head_size_attribute : str
        Attribute of `attention` with the size of one head.
    head_counts : mapping of str to {"heads", "channels", "heads_per_group"}
        Attributes of `attention` that must follow the number of heads.
    feed_forward_inputs : tuple of str
        Linear layers with one output row a neuron (two where the network is gated).
    feed_forward_output : str
        The consumer of the neurons.
    config_neurons : str
        Field of the config with the number of neurons.
    config_heads : tuple of three str, optional
        Fields with the numbers of heads, of key/value heads, and the head size, where the config
        can say them independently of the hidden size.
    causal : bool
        Whether the family is of decoders, which see only what comes before.
    positions_after_padding : bool
        Whether position embeddings are counted from the id of padding, as in fairseq: those up to
        it stand for no token.
    stream_after_heads, stream_after_neurons : str, optional
        The module whose input is the residual stream with the heads' (the neurons') output added.
        None: what the layer returns.
    """

    model_types: tuple[str, ...]
    layers: str
    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    head_size_attribute: str
    feed_forward_inputs: tuple[str, ...]
    feed_forward_output: str
    config_neurons: str
    head_counts: Mapping[str, str] = field(default_factory=dict)
    config_heads: tuple[str, str, str] | None = None
    causal: bool = False
    positions_after_padding: bool = False
    stream_after_heads: str | None = None
    stream_after_neurons: str | None = None

    def max_positions(self, config: PreTrainedConfig) -> int | None:
        """Tokens of the longest sequence that a model of this config takes; None if it is open."""
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and self.positions_after_padding:
            limit -= config.pad_token_id + 1
        return limit


_REGISTRY: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> None:
    """Make a family known to `prune`, under each of its model types."""
    for model_type in architecture.model_types:
        _REGISTRY[model_type] = architecture


def supported_model_types() -> list[str]:
    """Values of ``config.model_type`` that can be pruned, sorted."""
    return sorted(_REGISTRY)


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The description of a model's family.

    Raises
    ------
    UnsupportedArchitectureError
        If ``model.config.model_type`` is not registered.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in _REGISTRY:
        raise UnsupportedArchitectureError(
            f"Cannot prune {type(model).__name__} (model_type {model_type!r}). Supported model "
            f"types: {', '.join(supported_model_types())}. To add one, describe where its linear "
            "layers are: stat_prune.architectures.register_architecture(Architecture(...))."
        )
    return _REGISTRY[model_type]


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of a model's layers, in the order in which they run."""
    layers = model.base_model.get_submodule(architecture_of(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def find_blocks(model: PreTrainedModel) -> list[Block]:
    """All blocks of a model, layer by layer, the heads before the neurons.

    Raises
    ------
    UnsupportedArchitectureError
        If the family is unknown.
    ModelError
        If a layer that should be an ordinary ``nn.Linear`` with its weights in memory is not.
    """
    architecture = architecture_of(model)
    blocks = []
    for index, layer in enumerate(transformer_layers(model)):
        path = f"{architecture.layers}.{index}"
        blocks.append(_head_block(architecture, layer, path, index))
        blocks.append(_neuron_block(architecture, layer, path, index))
    return blocks


def _head_block(architecture: Architecture, layer: nn.Module, path: str, index: int) -> Block:
    query, key, value, output = (
        _checked_linear(layer, name, path)
        for name in (
            architecture.query,
            architecture.key,
            architecture.value,
            architecture.attention_output,
        )
    )
    attention = layer.get_submodule(architecture.attention)
    head_size = int(getattr(attention, architecture.head_size_attribute))
    num_heads, num_groups = query.out_features // head_size, key.out_features // head_size
    shared = num_groups < num_heads
    own = (query,) if shared else (query, key, value)
    return Block(
        name=f"{path}.heads",
        kind="heads",
        layer=index,
        consumer=f"{path}.{architecture.attention_output}",
        producers=_paths(path, (architecture.query,) if shared else _qkv(architecture)),
        shared_producers=_paths(path, (architecture.key, architecture.value) if shared else ()),
        num_units=num_heads,
        unit_size=head_size,
        num_groups=num_groups,
        input_size=query.in_features,
        output_size=output.out_features,
        num_biases=(
            _count_biases(*own),
            _count_biases(key, value) if shared else 0,
            _count_biases(output),
        ),
        attributes={f"{path}.{architecture.attention}": architecture.head_counts},
    )


def _neuron_block(architecture: Architecture, layer: nn.Module, path: str, index: int) -> Block:
    producers = [_checked_linear(layer, name, path) for name in architecture.feed_forward_inputs]
    output = _checked_linear(layer, architecture.feed_forward_output, path)
    return Block(
        name=f"{path}.neurons",
        kind="neurons",
        layer=index,
        consumer=f"{path}.{architecture.feed_forward_output}",
        producers=_paths(path, architecture.feed_forward_inputs),
        shared_producers=(),
        num_units=output.in_features,
        unit_size=1,
        num_groups=output.in_features,
        input_size=producers[0].in_features,
        output_size=output.out_features,
        num_biases=(_count_biases(*producers), 0, _count_biases(output)),
    )


def _qkv(architecture: Architecture) -> tuple[str, ...]:
    return (architecture.query, architecture.key, architecture.value)


def _paths(path: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in names)


def _count_biases(*modules: nn.Linear) -> int:
    return sum(module.bias is not None for module in modules)


def _checked_linear(layer: nn.Module, name: str, path: str) -> nn.Linear:
    module = layer.get_submodule(name)
    where = f"{path}.{name}"
    if type(module) is not nn.Linear or not module.weight.dtype.is_floating_point:
        raise ModelError(
            f"{where} is a {type(module).__module__}.{type(module).__name__} with "
            f"{getattr(getattr(module, 'weight', None), 'dtype', 'no')} weights, not a plain "
            "torch.nn.Linear. Prune the full-precision model first (merge adapters, load without "
            "a quantization config) and quantize the result."
        )
    if module.weight.is_meta or type(module.weight) is not nn.Parameter:
        raise ModelError(
            f"The weights of {where} are not in this process's memory (offloaded or sharded). "
            "Load the model on one device, without device_map or tensor parallelism."
        )
    return module
