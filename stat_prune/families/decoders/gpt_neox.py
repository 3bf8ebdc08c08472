"""GPT-NeoX and Pythia: query, key and value are fused head by head.

Attention and feed-forward network read the same stream and are added together, unless the config
says ``use_parallel_residual=False``.
"""

from typing import Any

from stat_prune.families.architecture import Architecture, Attention, FeedForward


def _variant(architecture: Architecture, config: Any) -> Architecture:
    if config.use_parallel_residual:
        return architecture
    return architecture.with_attention(stream_after="post_attention_layernorm")


GPT_NEOX = Architecture(
    model_types=("gpt_neox",),
    layers="layers",
    attentions=(
        Attention(
            module="attention",
            query="attention.query_key_value",
            key="attention.query_key_value",
            value="attention.query_key_value",
            output="attention.dense",
            head_size="head_size",
            interleaved=True,
        ),
    ),
    feed_forwards=(
        FeedForward(
            ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", config_neurons="intermediate_size"
        ),
    ),
    causal=True,
    variant=_variant,
)
