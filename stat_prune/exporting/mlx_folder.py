"""A folder for mlx-lm: its OpenELM takes the sizes of each layer as lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.errors import SettingsError, UnsupportedArchitectureError
from stat_prune.exporting.decoders import DecoderLayer, check_llama_like, decoder_layers, window_of

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def write_mlx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    type: str = "auto",
) -> list[str]:
    """Write a causal language model that ``mlx_lm.load`` opens.

    Parameters
    ----------
    model : PreTrainedModel
        A Llama, Mistral or Qwen3 without biases.
    tokenizer : PreTrainedTokenizerBase, optional
    folder : Path
        It exists, and is empty.
    type : {"auto", "f32", "f16", "bf16"}
        Of all weights; ``"auto"`` is that of the model.

    Returns
    -------
    list of str
        What is to be said of it.

    Raises
    ------
    UnsupportedArchitectureError
        If OpenELM cannot hold the model.
    SettingsError
        If there is no such type.
    """
    if type not in (*TYPES, "auto"):
        raise SettingsError(
            f"type={type!r} is not written here; {', '.join(TYPES)} are. mlx_lm.convert quantizes "
            "the folder from there."
        )
    check_mlx(model)
    layers = list(decoder_layers(model))
    dtype = model.dtype if type == "auto" else TYPES[type]
    weights = {name: tensor.to(dtype).contiguous() for name, tensor in _tensors(model, layers)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(model, layers), indent=2))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    window = window_of(model.config)
    if not window or window >= model.config.max_position_embeddings:
        return []
    return [f"right up to {window} tokens: mlx-lm attends to what lies behind the window, too"]


def check_mlx(model: PreTrainedModel) -> None:
    """Refuse a model that OpenELM cannot hold.

    Raises
    ------
    UnsupportedArchitectureError
    """
    check_llama_like(model, "mlx-lm")
    config: Any = model.config
    rope = config.rope_parameters["rope_type"]
    biased = [name for name, _ in model.named_parameters() if name.endswith("_proj.bias")]
    if rope == "default" and not biased:
        return
    cause = f"biases ({biased[0]})" if biased else f"rotary positions of the type {rope!r}"
    raise UnsupportedArchitectureError(
        f"mlx-lm holds layers of different sizes without {cause} only. Prune with uniform=True, "
        "and without remove_blocks=True, which leaves biases: it opens that folder as it is."
    )


def _config(model: PreTrainedModel, layers: list[DecoderLayer]) -> dict[str, Any]:
    config: Any = model.config
    blocks: Any = model.base_model.layers
    context = config.max_position_embeddings
    return {
        "model_type": "openelm",
        "architectures": ["OpenELMForCausalLM"],
        "head_dim": blocks[0].self_attn.head_dim,
        "num_transformer_layers": len(layers),
        "model_dim": config.hidden_size,
        "vocab_size": config.vocab_size,
        "max_context_length": min(context, window_of(config) or context),
        "num_query_heads": [layer.num_heads for layer in layers],
        "num_kv_heads": [layer.num_kv_heads for layer in layers],
        "ffn_multipliers": [layer.num_neurons / config.hidden_size for layer in layers],
        "ffn_dim_divisor": 1,
        "ffn_with_glu": True,
        "normalize_qk_projections": "q" in layers[0].norms,
        "share_input_output_layers": config.tie_word_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_freq_constant": config.rope_parameters["rope_theta"],
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    }


def _tensors(model: PreTrainedModel, layers: list[DecoderLayer]) -> Iterator[tuple[str, Tensor]]:
    network: Any = model
    yield "transformer.token_embeddings.weight", network.base_model.embed_tokens.weight.detach()
    yield "transformer.norm.weight", network.base_model.norm.weight.detach()
    if not model.config.tie_word_embeddings:
        yield "lm_head.weight", network.lm_head.weight.detach()
    for i, layer in enumerate(layers):
        path, weights, norms = f"transformer.layers.{i}", layer.weights, layer.norms
        yield f"{path}.attn.qkv_proj.weight", torch.cat([weights[name] for name in ("q", "k", "v")])
        yield f"{path}.attn.out_proj.weight", weights["o"]
        yield f"{path}.ffn.proj_1.weight", torch.cat([weights["gate"], weights["up"]])
        yield f"{path}.ffn.proj_2.weight", weights["down"]
        yield f"{path}.attn_norm.weight", norms["attention"]
        yield f"{path}.ffn_norm.weight", norms["feed_forward"]
        for name in ("q", "k"):
            if name in norms:
                yield f"{path}.attn.{name}_norm.weight", norms[name]
