"""ViT and DINOv2: encoders of images, which they read in patches."""

from dataclasses import replace
from typing import Any

import torch

from stat_prune.families.architecture import Architecture, Attention, FeedForward, Signal


def image_positions(config: Any, shape: torch.Size) -> int:
    """Patches of an image, and the class token before them."""
    size = getattr(config, "vision_config", config).patch_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    patches: int = (shape[-2] // height) * (shape[-1] // width)
    return patches + 1


def _with_swiglu(architecture: Architecture, config: Any) -> Architecture:
    """The largest DINOv2 has a gated feed-forward network."""
    if not config.use_swiglu_ffn:
        return architecture
    return architecture.with_feed_forward(
        inputs=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj"
    )


VIT = Architecture(
    model_types=("vit",),
    layers="layers",
    attentions=(
        Attention(
            module="attention",
            query="attention.q_proj",
            key="attention.k_proj",
            value="attention.v_proj",
            output="attention.o_proj",
            head_size="head_dim",
            counts={"num_attention_heads": "heads"},
            stream_after="layernorm_after",
            own_dims="all",
        ),
    ),
    feed_forwards=(
        FeedForward(inputs=("mlp.fc1",), output="mlp.fc2", config_neurons="intermediate_size"),
    ),
    mask="patch_mask",
    signal=Signal("pixel_values", image_positions),
)

# What its consumers write is scaled, channel by channel, before it joins the residual stream; and
# its config says the number of neurons only as a ratio.
DINOV2 = (
    replace(VIT, model_types=("dinov2",), layers="encoder.layer", variant=_with_swiglu)
    .with_attention(adds_to_stream=False)
    .with_feed_forward(adds_to_stream=False, config_neurons=None)
)
