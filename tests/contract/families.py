"""The rows of the contract: every supported family as a tiny model with random weights."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    name: str
    config: dict[str, Any]
    heads: tuple[str, ...]
    layers: str

    @property
    def is_decoder(self) -> bool:
        return "ForCausalLM" in self.heads

    def build(self, head: str = "Model", dtype: str = "float32", **config: Any) -> PreTrainedModel:
        """A stock model; the same weights at each call."""
        torch.manual_seed(0)
        configuration = getattr(transformers, f"{self.name}Config")(**self.config, **config)
        model_class = getattr(transformers, self.name + head)
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
]
DECODERS = [family for family in FAMILIES if family.is_decoder]


@torch.no_grad()
def output(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs)[0]
