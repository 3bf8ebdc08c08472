"""The rows of the contract: every supported family as a tiny model with random weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
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
        Path of the list of layers below the base model; several of a model with several stacks.
    variant : str
        Which of the family's layouts it is, where there are several.
    classes : mapping of str to str
        Names of classes that are not the family's and the head's.
    config_class : str
        Likewise of the config.
    signals : mapping of str to tuple of int
        Inputs that are no text, and the shape of one example.
    relative_positions : bool
        Whether sequences may be longer than the config says.
    """

    name: str
    config: dict[str, Any]
    heads: tuple[str, ...]
    layers: str | tuple[str, ...]
    variant: str = ""
    classes: Mapping[str, str] = field(default_factory=dict)
    config_class: str = ""
    signals: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    relative_positions: bool = False

    @property
    def label(self) -> str:
        """What it is called in tests and tables."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def is_decoder(self) -> bool:
        return "ForCausalLM" in self.heads

    @property
    def writing_head(self) -> str | None:
        """The head that text is generated with, behind an encoder or not."""
        names = ("ForCausalLM", "ForConditionalGeneration")
        return next((head for head in self.heads if head in names), None)

    @property
    def has_experts(self) -> bool:
        return "num_experts_per_tok" in self.config

    @property
    def stacks(self) -> tuple[str, ...]:
        """Paths of the lists of layers."""
        return (self.layers,) if isinstance(self.layers, str) else self.layers

    @property
    def classifier(self) -> str:
        """The head that has one distribution, or one vector, a sequence."""
        names = ("SequenceClassification", "ImageClassification", "AudioClassification")
        return next((h for h in self.heads if h.removeprefix("For") in names), self.heads[-1])

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

DEBERTA = BERT_LIKE | {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["c2p", "p2c"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
MODERNBERT = BERT_LIKE | TOKENS | {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}
BART = COMMON | TOKENS | {"d_model": 32, "max_position_embeddings": 64, "init_std": 0.25}
BART |= {f"{side}_layers": 2 for side in ("encoder", "decoder")}
BART |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
BART |= {f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")}
BART |= {"decoder_start_token_id": 3, "forced_eos_token_id": None}
BART_HEADS = (
    "Model", "ForConditionalGeneration", "ForSequenceClassification", "ForQuestionAnswering",
)  # fmt: skip
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2}
T5 |= {"decoder_start_token_id": 0, "eos_token_id": 3, "relative_attention_num_buckets": 8}
T5_HEADS = (
    "Model", "ForConditionalGeneration", "ForSequenceClassification", "ForTokenClassification",
    "ForQuestionAnswering",
)  # fmt: skip
IMAGES = {"pixel_values": (3, 16, 16)}
VISION = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 32, "image_size": 16}
VISION |= {"patch_size": 4, "initializer_range": 0.25}
VIT = VISION | {"intermediate_size": 48}
DINOV2 = VISION | {"mlp_ratio": 2, "layerscale_value": 0.7}
WHISPER = BART | {"num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 64}
WHISPER |= {"begin_suppress_tokens": None, "classifier_proj_size": 16}
CLIP_TEXT = BERT_LIKE | TOKENS
CLIP_VISION = VIT | {"projection_dim": 16}

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
Inputs = dict[str, Tensor]
SIGNALS = {**IMAGES, "input_features": (8, 64)}

FAMILIES += [
    Family("XLMRoberta", BERT_LIKE | {"pad_token_id": 1}, ENCODER_HEADS, "encoder.layer"),
    Family("MPNet", BERT_LIKE | {"pad_token_id": 1}, ENCODER_HEADS, "encoder.layer"),
    Family(
        "Albert",
        BERT_LIKE | {"num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 16},
        ENCODER_HEADS,
        "encoder.albert_layer_groups",
    ),
    Family(
        "DebertaV2",
        DEBERTA,
        ENCODER_HEADS,
        "encoder.layer",
        "shared keys",
        relative_positions=True,
    ),
    Family(
        "DebertaV2",
        DEBERTA | {"share_att_key": False},
        ENCODER_HEADS,
        "encoder.layer",
        "own keys",
        relative_positions=True,
    ),
    Family("ModernBert", MODERNBERT, ENCODER_HEADS, "layers", relative_positions=True),
    Family("Bart", BART, BART_HEADS, ("encoder.layers", "decoder.layers")),
    Family("T5", T5, T5_HEADS, ("encoder.block", "decoder.block")),
    Family(
        "T5",
        T5 | {"feed_forward_proj": "gated-gelu"},
        T5_HEADS,
        ("encoder.block", "decoder.block"),
        "gated",
    ),
    Family("ViT", VIT, ("Model", "ForImageClassification"), "layers", signals=IMAGES),
    Family("Dinov2", DINOV2, ("Model", "ForImageClassification"), "encoder.layer", signals=IMAGES),
    Family(
        "Dinov2",
        DINOV2 | {"use_swiglu_ffn": True},
        ("Model", "ForImageClassification"),
        "encoder.layer",
        "gated",
        signals=IMAGES,
    ),
    Family(
        "Whisper",
        WHISPER,
        ("Model", "ForConditionalGeneration", "ForAudioClassification"),
        ("encoder.layers", "decoder.layers"),
        signals={"input_features": (8, 64)},
    ),
    Family(
        "CLIP",
        {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 16},
        ("Model", "ForImageClassification"),
        ("vision_model.encoder.layers", "text_model.encoder.layers"),
        signals=IMAGES,
    ),
    Family("CLIPText", CLIP_TEXT, ("Model", "ModelWithProjection"), "encoder.layers"),
    Family(
        "CLIPVision",
        CLIP_VISION,
        ("Model", "ModelWithProjection"),
        "encoder.layers",
        signals=IMAGES,
    ),
]

#: One family of each layout: heads of their own, groups of them, one weight for all three, blocks
#: side by side, heads that stay, experts, layers that share weights, and several stacks, of text,
#: of text and signals, and of sounds.
LAYOUTS = (
    "Bert", "Llama", "GPT2", "GPTNeoX-parallel", "Olmo2", "Mixtral", "Albert", "T5", "CLIP",
    "Whisper",
)  # fmt: skip
#: Methods beside the default, which cut what it cuts in the same ways.
BESIDES = [pytest.param(name, marks=pytest.mark.layouts) for name in ("stat-paper", "magnitude")]
TEXT_FAMILIES = [family for family in FAMILIES if not family.signals]


def reads(model: PreTrainedModel) -> set[str]:
    """The main inputs of a model: those of its ``forward`` that are tokens or signals."""
    names = {"input_ids", "decoder_input_ids", *SIGNALS}
    return names & set(inspect.signature(model.forward).parameters)


def completed(model: PreTrainedModel, tokens: Mapping[str, Tensor], seed: int = 0) -> Inputs:
    """A batch of what a model reads of tokens, with images, sounds and a decoder's inputs."""
    names, batch = reads(model), {}
    ids = tokens["input_ids"]
    size = len(ids)
    if "input_ids" in names:
        batch |= tokens
    for name in names & SIGNALS.keys():
        batch[name] = signals(SIGNALS[name], size, seed).to(model.dtype)
    if "decoder_input_ids" in names:
        start = torch.full((size, 1), model.config.decoder_start_token_id)
        batch["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], 1)
        mask = tokens.get("attention_mask", torch.ones_like(ids))
        batch["decoder_attention_mask"] = mask
    return batch


def examples(model: PreTrainedModel, texts: Sequence[str], tokenizer: Any) -> list[Any]:
    """Calibration data: the texts, or model inputs where it reads something else."""
    if not reads(model) & SIGNALS.keys():
        return list(texts)
    batches = (dict(tokenizer(text, return_tensors="pt")) for text in texts)
    return [completed(model, batch, seed) for seed, batch in enumerate(batches)]


def signals(shape: Sequence[int], size: int, seed: int) -> Tensor:
    """Random images or sounds that have something in common."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(6, math.prod(shape), generator=torch.Generator().manual_seed(0))
    mixed = torch.randn(size, 6, generator=generator) @ common
    noise = torch.randn(mixed.shape, generator=generator)
    return (mixed + 0.5 * noise).reshape(size, *shape)


@torch.no_grad()
def output(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The first output on a batch; what a model reads beside tokens is added."""
    return model(**completed(model, inputs))[0]
