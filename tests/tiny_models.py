"""Tiny stock models with random weights, large enough that layers, heads and neurons matter.

They take the ids of the fixture `word_tokenizer`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}


def tiny_bert(model_class: type[PreTrainedModel] = BertModel, **config: Any) -> PreTrainedModel:
    """A BERT in evaluation mode; the same weights at each call."""
    torch.manual_seed(0)
    return model_class(BertConfig(**SIZES | config)).eval()


def tiny_llama(**config: Any) -> LlamaForCausalLM:
    """A Llama with two key/value heads in evaluation mode; the same weights at each call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 2} | config)).eval()
