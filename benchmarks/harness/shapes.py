"""Models of known shapes with random weights: time and memory depend on shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}

#: Class, config, layers of the published model.
SHAPES: dict[str, tuple[type[PreTrainedModel], Callable[..., PreTrainedConfig], int]] = {
    "bert-base": (BertModel, BertConfig, 12),
    "vit-base": (ViTModel, ViTConfig, 12),
    "llama-1b": (LlamaForCausalLM, partial(LlamaConfig, **LLAMA_1B), 16),
    "llama-7b": (LlamaForCausalLM, partial(LlamaConfig, **LLAMA_7B), 32),
    "tiny-llama": (LlamaForCausalLM, partial(LlamaConfig, **TINY), 2),
}


def random_weights(
    shape: str, *, layers: int | None, device: str, dtype: str, seed: int
) -> PreTrainedModel:
    """A model of a shape, made where it is to be.

    Parameters
    ----------
    shape : str
        A key of `SHAPES`.
    layers : int or None
        In place of those of the published model.
    device, dtype : str
    seed : int
        Of the weights.
    """
    model_class, config, published = SHAPES[shape]
    torch.manual_seed(seed)
    with torch.device(device):
        model = model_class._from_config(
            config(num_hidden_layers=layers or published), dtype=getattr(torch, dtype)
        )
    return model.eval()
