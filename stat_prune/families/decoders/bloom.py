"""BLOOM: neurons only, as its position biases (ALiBi) are made for all heads of all layers at once.

Its config has no number of neurons: it is four times the hidden size.
"""

from typing import Any

from stat_prune.families.architecture import Architecture, Attention, FeedForward


def _variant(architecture: Architecture, config: Any) -> Architecture:
    # The residual connection then starts behind the norm, so that no module reads the sum.
    if config.apply_residual_connection_post_layernorm:
        return architecture.with_attention(adds_to_stream=False)
    return architecture


BLOOM = Architecture(
    model_types=("bloom",),
    layers="h",
    attentions=(
        Attention(
            module="self_attention",
            query="self_attention.query_key_value",
            key="self_attention.query_key_value",
            value="self_attention.query_key_value",
            output="self_attention.dense",
            head_size="head_dim",
            interleaved=True,
            stream_after="post_attention_layernorm",
            fixed=(
                "The heads of BLOOM stay: the slopes of its position biases (ALiBi) are made for "
                "all heads of all layers at once."
            ),
        ),
    ),
    feed_forwards=(FeedForward(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),),
    causal=True,
    variant=_variant,
)
