"""The rows of the contract: every supported family as a tiny model with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

# Weights large enough that heads and neurons differ in what they do.
COMMON: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "initializer_range": 0.25}
BERT_LIKE = COMMON | {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LLAMA_LIKE = BERT_LIKE | {"num_key_value_heads": 2, "head_dim": 8}


@dataclass(frozen=True)
class Family:
    """A row of the contract.

    Attributes
    ----------
    name : str
        What its classes begin with.
    config : dict
    heads : tuple of str
        What its classes end with: one the base model and one each kind of head.
    layers : str
        Path of the list of layers below the base model.
    variant : str
        Which of the family's layouts it is, where there are several.
    classes : mapping of str to str
        Names of classes that are not the family's and the head's.
    config_class : str
        Likewise of the config.
    """

    name: str
    config: dict[str, Any]
    heads: tuple[str, ...]
    layers: str
    variant: str = ""
    classes: Mapping[str, str] = field(default_factory=dict)
    config_class: str = ""

    @property
    def label(self) -> str:
        """What it is called in tests and tables."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def is_decoder(self) -> bool:
        return "ForCausalLM" in self.heads

    @property
    def has_experts(self) -> bool:
        return "num_experts_per_tok" in self.config

    def class_name(self, head: str) -> str:
        """Name of the model class with a head."""
        return self.classes.get(head, self.name + head)

    def build(self, head: str = "Model", dtype: str = "float32", **config: Any) -> PreTrainedModel:
        """A stock model; the same weights at each call."""
        torch.manual_seed(0)
        config_class = getattr(transformers, self.config_class or f"{self.name}Config")
        configuration = config_class(**self.config, **config)
        model_class = getattr(transformers, self.class_name(head))
        model = model_class._from_config(configuration, dtype=getattr(torch, dtype)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases and scales, which are all 0 or 1 in a new model
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model


ENCODER_HEADS = (
    "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
    "ForQuestionAnswering",
)  # fmt: skip
DECODER_HEADS = (
    "Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification",
    "ForQuestionAnswering",
)  # fmt: skip

OPT_HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering")
LANGUAGE_HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")

TOKENS = {"bos_token_id": 2, "eos_token_id": 3}
NEOX_LIKE = BERT_LIKE | TOKENS
GPT2 = COMMON | TOKENS
GPT2 |= {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 48, "n_positions": 64}
GPT_NEO = COMMON | TOKENS | {"hidden_size": 32, "num_heads": 4, "num_layers": 2}
GPT_NEO |= {"intermediate_size": 48, "max_position_embeddings": 64, "window_size": 8}
GPT_NEO |= {"attention_types": [[["global", "local"], 1]]}
OPT = NEOX_LIKE | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.25}
FALCON = NEOX_LIKE | {"ffn_hidden_size": 48}
BLOOM = COMMON | TOKENS | {"hidden_size": 32, "n_head": 4, "n_layer": 2}
EXPERTS = LLAMA_LIKE | {"num_experts_per_tok": 2}
QWEN_EXPERTS = EXPERTS | {"num_experts": 4, "moe_intermediate_size": 64}

#: Where heads stay, there have to be neurons enough that half of the whole can leave.
FIXED_HEADS = {"intermediate_size": 256}

FAMILIES = [
    Family("Bert", BERT_LIKE, ENCODER_HEADS, "encoder.layer"),
    Family("Roberta", BERT_LIKE, ENCODER_HEADS, "encoder.layer"),
    Family("Electra", BERT_LIKE | {"embedding_size": 16}, ENCODER_HEADS, "encoder.layer"),
    Family(
        "DistilBert",
        COMMON
        | {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48, "max_position_embeddings": 64},
        ENCODER_HEADS,
        "transformer.layer",
    ),
    Family("Llama", LLAMA_LIKE, DECODER_HEADS, "layers"),
    Family("Mistral", LLAMA_LIKE, DECODER_HEADS, "layers"),
    Family("Qwen2", LLAMA_LIKE, DECODER_HEADS, "layers"),
    Family("Qwen3", LLAMA_LIKE, DECODER_HEADS, "layers"),
    Family("GPT2", GPT2, DECODER_HEADS, "h", classes={"ForCausalLM": "GPT2LMHeadModel"}),
    Family("GPTNeo", GPT_NEO, DECODER_HEADS, "h"),
    Family("GPTNeoX", NEOX_LIKE, DECODER_HEADS, "layers", "parallel"),
    Family(
        "GPTNeoX",
        NEOX_LIKE | {"use_parallel_residual": False},
        DECODER_HEADS,
        "layers",
        "sequential",
    ),
    Family("OPT", OPT, OPT_HEADS, "decoder.layers", "norms before"),
    Family(
        "OPT", OPT | {"do_layer_norm_before": False}, OPT_HEADS, "decoder.layers", "norms after"
    ),
    Family("Phi3", LLAMA_LIKE, LANGUAGE_HEADS, "layers"),
    Family(
        "Gemma2",
        LLAMA_LIKE | {"query_pre_attn_scalar": 8, "sliding_window": 8},
        LANGUAGE_HEADS,
        "layers",
    ),
    Family(
        "Gemma3Text",
        LLAMA_LIKE
        | {"query_pre_attn_scalar": 8, "sliding_window": 8}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        ("Model", "ForCausalLM", "ForSequenceClassification"),
        "layers",
        classes={"ForCausalLM": "Gemma3ForCausalLM"},
    ),
    Family(
        "Olmo2",
        LLAMA_LIKE | FIXED_HEADS,
        ("Model", "ForCausalLM", "ForSequenceClassification"),
        "layers",
    ),
    Family(
        "Falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        DECODER_HEADS,
        "h",
        "grouped",
    ),
    Family("Falcon", FALCON, DECODER_HEADS, "h", "multi-query"),
    Family(
        "Falcon",
        FALCON
        | {"multi_query": False, "alibi": True, "parallel_attn": False, "bias": True}
        | {"ffn_hidden_size": 256},
        DECODER_HEADS,
        "h",
        "ALiBi",
    ),
    Family("Bloom", BLOOM, DECODER_HEADS, "h"),
    Family(
        "Mixtral",
        EXPERTS | {"num_local_experts": 4, "intermediate_size": 64},
        DECODER_HEADS,
        "layers",
    ),
    Family(
        "Qwen2Moe",
        QWEN_EXPERTS | {"shared_expert_intermediate_size": 32},
        DECODER_HEADS,
        "layers",
    ),
    Family("Qwen3Moe", QWEN_EXPERTS | {"mlp_only_layers": [0]}, DECODER_HEADS, "layers"),
]
DECODERS = [family for family in FAMILIES if family.is_decoder]


@torch.no_grad()
def output(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs)[0]
