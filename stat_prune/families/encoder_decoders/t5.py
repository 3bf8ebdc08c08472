"""T5 and mT5: an encoder and a decoder without biases of linear layers.

The first layer of each stack has a bias of the scores for every relative position and head, which
the other layers are given. Once a stack loses heads, each of its layers has the bias of its own
heads: `stat_prune.model.position_bias`.
"""

from dataclasses import replace
from typing import Any

from stat_prune.families.architecture import Architecture, Attention, FeedForward


def _gated(architecture: Architecture, config: Any) -> Architecture:
    """Version 1.1, Flan-T5 and mT5 have gated feed-forward networks."""
    stacks = (architecture, *architecture.other_stacks)
    if config.is_gated_act:
        stacks = tuple(
            stack.with_feed_forward(
                inputs=tuple(
                    f"{path}_{i}" for path in stack.feed_forwards[0].inputs for i in range(2)
                )
            )
            for stack in stacks
        )
    return replace(stacks[0], other_stacks=stacks[1:])


def _attention(module: str, stream_after: str, **fields: Any) -> Attention:
    return Attention(
        module=module,
        query=f"{module}.q",
        key=f"{module}.k",
        value=f"{module}.v",
        output=f"{module}.o",
        head_size="key_value_proj_dim",
        counts={"n_heads": "heads", "inner_dim": "channels"},
        stream_after=stream_after,
        position_bias="own",
        own_dims="all",
        **fields,
    )


def _feed_forward(layer: str) -> FeedForward:
    return FeedForward(
        inputs=(f"{layer}.DenseReluDense.wi",),
        output=f"{layer}.DenseReluDense.wo",
        config_neurons="d_ff",
    )


_SELF_ATTENTION = _attention("layer.0.SelfAttention", "layer.1.layer_norm")

T5 = Architecture(
    model_types=("t5", "mt5"),
    layers="encoder.block",
    attentions=(_SELF_ATTENTION,),
    feed_forwards=(_feed_forward("layer.1"),),
    variant=_gated,
    other_stacks=(
        Architecture(
            model_types=(),
            layers="decoder.block",
            attentions=(
                _SELF_ATTENTION,
                _attention(
                    "layer.1.EncDecAttention", "layer.2.layer_norm", name="cross_heads", cross=True
                ),
            ),
            feed_forwards=(_feed_forward("layer.2"),),
            causal=True,
            mask="decoder_attention_mask",
        ),
    ),
)
