"""Decoders with Llama's layer, layer by layer, as other programs store them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.errors import UnsupportedArchitectureError

#: Families with norms before both halves of a layer, rotary positions and a gated network.
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class DecoderLayer:
    """One layer: its sizes, and its weights and biases by short names.

    Attributes
    ----------
    num_heads, num_kv_heads, num_neurons : int
        At least one of each: where the model has none left, a head or a neuron of zeros stands
        there, as programs read a layer without them in ways of their own.
    added_neurons : int
        How many of the neurons are zeros.
    weights, biases : dict of str to Tensor
        Of ``q``, ``k``, ``v``, ``o``, ``gate``, ``up`` and ``down``; biases where there are any.
    norms : dict of str to Tensor
        ``attention`` and ``feed_forward``; ``q`` and ``k`` where heads have norms.
    """

    num_heads: int
    num_kv_heads: int
    num_neurons: int
    added_neurons: int
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    norms: dict[str, Tensor]


def check_llama_like(model: PreTrainedModel, program: str) -> None:
    """Refuse, before any work, a model whose layers are not as those of Llama.

    Raises
    ------
    UnsupportedArchitectureError
    """
    kind = model.config.model_type
    if kind not in LLAMA_LIKE:
        raise UnsupportedArchitectureError(
            f"A model of the type {kind!r} cannot be written for {program}: sizes that differ by "
            f"layer are read there of {', '.join(LLAMA_LIKE)}. Export it to onnx or openvino; or, "
            f"where {program} knows the type, prune it with uniform=True and give it the folder "
            "that is saved."
        )
    if "head_dims" in (getattr(model.config, "stat_prune", None) or {}):
        raise UnsupportedArchitectureError(
            f"Heads of this {type(model).__name__} have lost dimensions, and {program} has no "
            "place for queries and keys of another size than values. Prune without head_dims=True, "
            "or serve it with transformers."
        )
    if not hasattr(model, "lm_head"):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has no language model head, which {program} needs. Load it as "
            "a causal language model (AutoModelForCausalLM), and prune that."
        )
    if model.config.hidden_act != "silu":
        raise UnsupportedArchitectureError(
            f"{program} computes the feed-forward networks of such models with silu, and this one "
            f"has {model.config.hidden_act!r}. Serve it with transformers or vLLM."
        )
    for path, module in model.named_modules():
        if path.endswith("_proj") and type(module) is not nn.Linear:
            raise UnsupportedArchitectureError(
                f"{path} is a {type(module).__name__}, and {program} has a place for one plain "
                "matrix. Prune without factoring, adapters and quantization, and export that."
            )


def window_of(config: Any) -> int | None:
    """Tokens that a layer attends to, where that is not all of them."""
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if slides else None


def decoder_layers(model: PreTrainedModel, multiple: int = 1) -> Iterator[DecoderLayer]:
    """The layers of a model that `check_llama_like` lets pass, one after another.

    Parameters
    ----------
    model : PreTrainedModel
    multiple : int
        Neurons of zeros are added up to a multiple of this; they change no output.
    """
    layers: Any = model.base_model.layers
    for layer in layers:
        yield _decoder_layer(layer, multiple)


def _decoder_layer(layer: Any, multiple: int) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    modules = {name: getattr(attention, f"{name}_proj") for name in ("q", "k", "v", "o")}
    modules |= {name: getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")}
    weights = {name: module.weight.detach() for name, module in modules.items()}
    biases = {
        name: module.bias.detach() for name, module in modules.items() if module.bias is not None
    }
    norms = {
        "attention": layer.input_layernorm.weight.detach(),
        "feed_forward": layer.post_attention_layernorm.weight.detach(),
    }
    for name in ("q", "k"):
        if hasattr(attention, f"{name}_norm"):
            norms[name] = getattr(attention, f"{name}_norm").weight.detach()

    size = attention.head_dim
    if not len(weights["q"]):
        _add(weights, biases, ("q", "k", "v"), "o", size)
    neurons = len(weights["gate"])
    padded = max(-(-neurons // multiple) * multiple, 1)
    _add(weights, biases, ("gate", "up"), "down", padded - neurons)
    return DecoderLayer(
        num_heads=len(weights["q"]) // size,
        num_kv_heads=len(weights["k"]) // size,
        num_neurons=padded,
        added_neurons=padded - neurons,
        weights=weights,
        biases=biases,
        norms=norms,
    )


def _add(
    weights: dict[str, Tensor],
    biases: dict[str, Tensor],
    makers: tuple[str, ...],
    reader: str,
    count: int,
) -> None:
    """Channels of zeros, made by some matrices and read by one, in place of the dictionaries."""
    if not count:
        return
    for name in makers:
        weight = weights[name]
        weights[name] = torch.cat([weight, weight.new_zeros(count, weight.shape[1])])
        if name in biases:
            biases[name] = torch.cat([biases[name], biases[name].new_zeros(count)])
    weight = weights[reader]
    weights[reader] = torch.cat([weight, weight.new_zeros(len(weight), count)], dim=1)
