"""CLIP: an encoder of images and one of texts, together or each on its own."""

from dataclasses import replace

from stat_prune.families.architecture import Architecture, Attention, FeedForward, Signal
from stat_prune.families.vision.vit import image_positions

_ATTENTION = Attention(
    module="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    head_size="head_dim",
    counts={"num_heads": "heads"},
    stream_after="layer_norm2",
    own_dims="all",
)
_NEURONS = FeedForward(inputs=("mlp.fc1",), output="mlp.fc2", config_neurons="intermediate_size")

CLIP_TEXT = Architecture(
    model_types=("clip_text_model",),
    layers="encoder.layers",
    attentions=(_ATTENTION,),
    feed_forwards=(_NEURONS,),
    causal=True,
)
CLIP_VISION = replace(
    CLIP_TEXT,
    model_types=("clip_vision_model",),
    causal=False,
    mask="patch_mask",
    signal=Signal("pixel_values", image_positions),
)


def _tower(architecture: Architecture, name: str) -> Architecture:
    """One of two towers; its blocks have names of their own, as the other may differ in size."""
    return replace(
        architecture,
        layers=f"{name}_model.{architecture.layers}",
        attentions=(replace(_ATTENTION, name=f"{name}_heads"),),
        feed_forwards=(
            replace(
                _NEURONS, name=f"{name}_neurons", config_neurons=f"{name}_config.intermediate_size"
            ),
        ),
    )


CLIP = replace(
    _tower(CLIP_VISION, "vision"),
    model_types=("clip",),
    other_stacks=(_tower(CLIP_TEXT, "text"),),
)
