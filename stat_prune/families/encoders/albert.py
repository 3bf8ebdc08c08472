"""ALBERT: groups of layers that share their weights.

A group is one layer that runs several times. Its statistics add up over the times it runs, and one
choice of heads and neurons serves them all.
"""

from typing import Any

from stat_prune.errors import ModelError
from stat_prune.families.architecture import Architecture, Attention, FeedForward


def _calls(config: Any, group: int) -> int:
    """How many layers of a model are the group's."""
    layers_per_group = config.num_hidden_layers / config.num_hidden_groups
    return sum(int(i / layers_per_group) == group for i in range(config.num_hidden_layers))


def _checked(architecture: Architecture, config: Any) -> Architecture:
    """Refuse groups of several layers, which run in turns: what one reads depends on the others."""
    if config.inner_group_num > 1:
        raise ModelError(
            f"An ALBERT with inner_group_num={config.inner_group_num} cannot be pruned: only "
            "groups of one layer can, as in all published checkpoints."
        )
    return architecture


ALBERT = Architecture(
    model_types=("albert",),
    layers="encoder.albert_layer_groups",
    attentions=(
        Attention(
            module="albert_layers.0.attention",
            query="albert_layers.0.attention.query",
            key="albert_layers.0.attention.key",
            value="albert_layers.0.attention.value",
            output="albert_layers.0.attention.dense",
            head_size="attention_head_size",
            counts={"num_attention_heads": "heads", "all_head_size": "channels"},
            stream_after="albert_layers.0.attention.LayerNorm",
            # The module that computes the heads adds them to the stream and normalises it.
            removable=False,
            own_dims="all",
        ),
    ),
    feed_forwards=(
        FeedForward(
            inputs=("albert_layers.0.ffn",),
            output="albert_layers.0.ffn_output",
            config_neurons="intermediate_size",
            stream_after="albert_layers.0.full_layer_layer_norm",
        ),
    ),
    variant=_checked,
    calls=_calls,
    embedding_projection="encoder.embedding_hidden_mapping_in",
)
