"""GGUF: the file that llama.cpp, and what is built on it, reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stat_prune.errors import SettingsError, StatPruneError
from stat_prune.exporting.decoders import DecoderLayer, decoder_layers, window_of
from stat_prune.exporting.llama_cpp import EVEN, TURN_NEIGHBOURS, gguf_architecture

try:
    import gguf
except ModuleNotFoundError as error:
    raise StatPruneError("GGUF files need gguf: pip install 'stat-prune[gguf]'") from error

from stat_prune.exporting.gguf_tokenizer import add_tokenizer

#: The types that are written here; llama.cpp's own quantizer makes the others out of them.
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_OF_DTYPE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

_MATRICES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_NORMS = {
    "attention": "attn_norm",
    "feed_forward": "ffn_norm",
    "q": "attn_q_norm",
    "k": "attn_k_norm",
}


@dataclass(frozen=True)
class _Plan:
    """What a file is going to hold."""

    architecture: str
    type: str
    multiple: int
    head_size: int


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    path: Path,
    *,
    type: str = "auto",
    pad_to: int | None = None,
    pre_tokenizer: str | None = None,
) -> list[str]:
    """Write a causal language model with its tokenizer.

    Parameters
    ----------
    model : PreTrainedModel
        A Llama, Mistral, Qwen2 or Qwen3, with layers of any sizes.
    tokenizer : PreTrainedTokenizerBase
    path : Path
        Of the file.
    type : {"auto", "f32", "f16", "bf16", "q8_0"}
        Of the matrices; ``"auto"`` is that of the model. Vectors are always float32.
    pad_to : int, optional
        Neurons of zeros are added up to a multiple of this. Default: 32 for ``"q8_0"``, whose
        rows have to be multiples of it, else 1. llama.cpp's types of the K kind ask for 256.
    pre_tokenizer : str, optional
        llama.cpp's name of how texts are split, where it cannot be found.

    Returns
    -------
    list of str
        What is other than might be expected, for the user to read.

    Raises
    ------
    UnsupportedArchitectureError
        If llama.cpp has no architecture that holds the model.
    SettingsError, ModelError
    """
    plan = _plan(model, type, pad_to)
    if tokenizer is None:
        raise SettingsError(
            "llama.cpp keeps the tokenizer in the GGUF file, and none is known. Pass tokenizer=."
        )
    writer = gguf.GGUFWriter(path, plan.architecture)
    try:
        notes = _add_facts(writer, model, plan)
        notes += add_tokenizer(writer, tokenizer, model.config, pre_tokenizer)
        wide = [
            name
            for name, tensor in _tensors(model, plan)
            if not _add_tensor(writer, name, tensor, plan.type)
        ]
        if wide:
            notes.append(
                f"{len(wide)} matrices are in f16, as their rows are no multiples of 32: "
                f"{', '.join(wide[:3])}{', ...' if len(wide) > 3 else ''}"
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return notes


def _plan(model: PreTrainedModel, type: str, pad_to: int | None) -> _Plan:
    if type not in (*TYPES, "auto"):
        raise SettingsError(
            f"type={type!r} is not written here; {', '.join(TYPES)} are. Write f16, and let "
            f"llama.cpp's own quantizer go on from there (llama-quantize IN OUT {type.upper()}); "
            "pad_to=256 gives it rows that its K types take."
        )
    if pad_to is not None and pad_to < 1:
        raise SettingsError(f"pad_to={pad_to} has to be at least 1.")
    even = not getattr(model.config, "stat_prune", None)
    architecture = gguf_architecture(model, even=even)
    kind = _OF_DTYPE[model.dtype] if type == "auto" else type
    layers: Any = model.base_model.layers
    multiple = pad_to or (32 if kind == "q8_0" else 1)
    return _Plan(architecture, kind, multiple, layers[0].self_attn.head_dim)


def _add_facts(writer: gguf.GGUFWriter, model: PreTrainedModel, plan: _Plan) -> list[str]:
    """Sizes and constants; what is to be said of them."""
    config: Any = model.config
    layers = list(decoder_layers(model, plan.multiple))
    heads = [layer.num_heads for layer in layers]
    kv_heads = [layer.num_kv_heads for layer in layers]
    neurons = [layer.num_neurons for layer in layers]
    even = plan.architecture == EVEN[config.model_type]
    window = window_of(config)
    context = config.max_position_embeddings
    writer.add_type("model")
    writer.add_name(Path(config.name_or_path).name or config.model_type)
    writer.add_block_count(len(layers))
    writer.add_context_length(min(context, window or context))
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(heads[0] if even else heads)
    writer.add_head_count_kv(kv_heads[0] if even else kv_heads)
    writer.add_feed_forward_length(neurons[0] if even else neurons)
    writer.add_key_length(plan.head_size)
    writer.add_value_length(plan.head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_dimension_count(plan.head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_file_type(TYPES[plan.type][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    notes = []
    if window and window < context:
        notes.append(f"the context is {window} tokens: what lies behind the window is not computed")
    notes += [
        f"layers.{i}: {layer.added_neurons} neurons of zeros make {layer.num_neurons}"
        for i, layer in enumerate(layers)
        if layer.added_neurons
    ]
    return notes


def _tensors(model: PreTrainedModel, plan: _Plan) -> Iterator[tuple[str, Tensor]]:
    """Everything that the file holds, by its name there."""
    network: Any = model
    base = network.base_model
    yield "token_embd.weight", base.embed_tokens.weight.detach()
    yield "output_norm.weight", base.norm.weight.detach()
    if not model.config.tie_word_embeddings:
        yield "output.weight", network.lm_head.weight.detach()
    if model.config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _frequency_factors(model.config)
    for i, layer in enumerate(decoder_layers(model, plan.multiple)):
        for name, tensor in _layer_tensors(layer, plan):
            yield f"blk.{i}.{name}", tensor


def _layer_tensors(layer: DecoderLayer, plan: _Plan) -> Iterator[tuple[str, Tensor]]:
    weights, biases = dict(layer.weights), dict(layer.biases)
    if plan.architecture in TURN_NEIGHBOURS:
        for tensors in (weights, biases):
            for name in {"q", "k"} & tensors.keys():
                tensors[name] = _neighbours(tensors[name], plan.head_size)
    if plan.architecture == "openelm":
        fused = torch.cat([weights.pop(name) for name in ("q", "k", "v")])
        yield "attn_qkv.weight", fused
    for name, weight in weights.items():
        yield f"{_MATRICES[name]}.weight", weight
    for name, bias in biases.items():
        yield f"{_MATRICES[name]}.bias", bias
    for name, norm in layer.norms.items():
        yield f"{_NORMS[name]}.weight", norm


def _neighbours(rows: Tensor, head_size: int) -> Tensor:
    """Rows of queries or keys, with those that turn together side by side."""
    halves = rows.reshape(-1, 2, head_size // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _frequency_factors(config: Any) -> Tensor:
    """By how much each rotary frequency is divided."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(scaled)
    plain: Tensor = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    return plain / scaled


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor, type: str) -> bool:
    """Whether it could be written in the type asked for."""
    values = tensor.float().contiguous().cpu().numpy()
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return True
    fits = type != "q8_0" or values.shape[1] % gguf.GGML_QUANT_SIZES[TYPES[type][0]][0] == 0
    kind = TYPES[type if fits else "f16"][0]
    writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    return fits
