"""Phi-3: all queries, keys and values in one layer, gate and up in another.

Its attention reads the number of query heads from the model's config, so that a pruned layer needs
a config of its own.
"""

from stat_prune.families.architecture import Architecture, Attention, FeedForward

PHI3 = Architecture(
    model_types=("phi3",),
    layers="layers",
    attentions=(
        Attention(
            module="self_attn",
            query="self_attn.qkv_proj",
            key="self_attn.qkv_proj",
            value="self_attn.qkv_proj",
            output="self_attn.o_proj",
            head_size="head_dim",
            counts={
                "config.num_attention_heads": "heads",
                "num_key_value_heads": "groups",
                "num_key_value_groups": "heads_per_group",
            },
            config_heads=("num_attention_heads", "num_key_value_heads", "head_dim"),
            stream_after="post_attention_layernorm",
        ),
    ),
    feed_forwards=(
        FeedForward(
            ("mlp.gate_up_proj", "mlp.gate_up_proj"),
            "mlp.down_proj",
            config_neurons="intermediate_size",
        ),
    ),
    causal=True,
)
