"""OPT: norms before each sublayer, or, in OPT-350m, after it."""

from typing import Any

from stat_prune.families.architecture import Architecture, Attention, FeedForward


def _variant(architecture: Architecture, config: Any) -> Architecture:
    if config.do_layer_norm_before:
        return architecture
    after = architecture.with_attention(stream_after="self_attn_layer_norm")
    return after.with_feed_forward(stream_after="final_layer_norm")


OPT = Architecture(
    model_types=("opt",),
    layers="decoder.layers",
    attentions=(
        Attention(
            module="self_attn",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            output="self_attn.out_proj",
            head_size="head_dim",
            counts={"num_heads": "heads"},
            stream_after="final_layer_norm",
            own_dims="all",
        ),
    ),
    feed_forwards=(FeedForward(("fc1",), "fc2", config_neurons="ffn_dim"),),
    causal=True,
    variant=_variant,
    embedding_projection="decoder.project_in",
)
