"""BART: an encoder, and a decoder that attends to it."""

from dataclasses import replace
from typing import Any

from stat_prune.errors import ModelError
from stat_prune.families.architecture import Architecture, Attention, FeedForward


def behind_an_encoder(architecture: Architecture, config: Any) -> Architecture:
    """Refuse a decoder on its own, whose attention to an encoder is there but never runs."""
    if not config.is_encoder_decoder:
        raise ModelError(
            f"A decoder of {config.model_type!r} without its encoder cannot be pruned: its "
            "cross-attention computes nothing. Prune the model that has both."
        )
    return architecture


SELF_ATTENTION = Attention(
    module="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    head_size="head_dim",
    counts={"num_heads": "heads"},
    stream_after="self_attn_layer_norm",
    own_dims="all",
)
CROSS_ATTENTION = replace(
    SELF_ATTENTION,
    name="cross_heads",
    cross=True,
    module="encoder_attn",
    query="encoder_attn.q_proj",
    key="encoder_attn.k_proj",
    value="encoder_attn.v_proj",
    output="encoder_attn.out_proj",
    stream_after="encoder_attn_layer_norm",
)
FEED_FORWARD = FeedForward(
    inputs=("fc1",),
    output="fc2",
    config_neurons="encoder_ffn_dim",
    stream_after="final_layer_norm",
)

DECODER = Architecture(
    model_types=(),
    layers="decoder.layers",
    attentions=(SELF_ATTENTION, CROSS_ATTENTION),
    feed_forwards=(replace(FEED_FORWARD, config_neurons="decoder_ffn_dim"),),
    causal=True,
    mask="decoder_attention_mask",
)
BART = Architecture(
    model_types=("bart",),
    layers="encoder.layers",
    attentions=(SELF_ATTENTION,),
    feed_forwards=(FEED_FORWARD,),
    variant=behind_an_encoder,
    other_stacks=(DECODER,),
)
