"""Whisper: BART's layers with norms before the sublayers, behind an encoder of sound."""

from dataclasses import replace
from typing import Any

import torch

from stat_prune.families.architecture import Architecture, Signal
from stat_prune.families.encoder_decoders.bart import (
    CROSS_ATTENTION,
    DECODER,
    FEED_FORWARD,
    SELF_ATTENTION,
    behind_an_encoder,
)


def _frames(_config: Any, shape: torch.Size) -> int:
    """Every second frame: the second convolution has stride 2."""
    return (shape[-1] + 1) // 2


_NEURONS = replace(FEED_FORWARD, stream_after=None)

WHISPER = Architecture(
    model_types=("whisper",),
    layers="encoder.layers",
    attentions=(replace(SELF_ATTENTION, stream_after="final_layer_norm"),),
    feed_forwards=(_NEURONS,),
    variant=behind_an_encoder,
    mask="frame_mask",
    signal=Signal("input_features", _frames),
    other_stacks=(
        replace(
            DECODER,
            attentions=(
                replace(SELF_ATTENTION, stream_after="encoder_attn_layer_norm"),
                replace(CROSS_ATTENTION, stream_after="final_layer_norm"),
            ),
            feed_forwards=(replace(_NEURONS, config_neurons="decoder_ffn_dim"),),
        ),
    ),
)
