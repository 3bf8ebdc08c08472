"""Falcon: query, key and value fused by key/value head, in each of its three layouts.

Falcon-40B and later have several query heads for each key/value head ("new decoder architecture"),
Falcon-7B one key/value head for all ("multi-query"), Falcon-RW one for each.
"""

from typing import Any

from stat_prune.families.architecture import Architecture, Attention, FeedForward

_ALIBI = (
    "The heads of this model stay: the slopes of its position biases (ALiBi) are made for all "
    "heads of all layers at once."
)


def _variant(architecture: Architecture, config: Any) -> Architecture:
    parallel = config.new_decoder_architecture or config.parallel_attn
    return architecture.with_attention(
        fixed=_ALIBI if config.alibi else "",
        stream_after=None if parallel else "post_attention_layernorm",
    )


FALCON = Architecture(
    model_types=("falcon",),
    layers="h",
    attentions=(
        Attention(
            module="self_attention",
            query="self_attention.query_key_value",
            key="self_attention.query_key_value",
            value="self_attention.query_key_value",
            output="self_attention.dense",
            head_size="head_dim",
            counts={"num_heads": "heads", "num_kv_heads": "groups"},
            interleaved=True,
        ),
    ),
    feed_forwards=(
        FeedForward(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", config_neurons="ffn_hidden_size"),
    ),
    causal=True,
    variant=_variant,
)
