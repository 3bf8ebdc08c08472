"""Llama and the decoders that share its layer: Mistral, Qwen2, Qwen3.

Grouped-query attention and the gated feed-forward network. The config says the head size on its
own, so a model with the same sizes in every layer needs no code of ours to reload. Qwen3's norms of
queries and keys are over one head, so they stay as they are, and so do the dimensions in a head of
queries and keys.
"""

from dataclasses import replace

from stat_prune.families.architecture import Architecture, Attention, FeedForward

LLAMA = Architecture(
    model_types=("llama", "mistral", "qwen2"),
    layers="layers",
    attentions=(
        Attention(
            module="self_attn",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            output="self_attn.o_proj",
            head_size="head_dim",
            counts={"num_key_value_groups": "heads_per_group"},
            config_heads=("num_attention_heads", "num_key_value_heads", "head_dim"),
            stream_after="post_attention_layernorm",
            own_dims="all",
            rotary="rotary_emb",
        ),
    ),
    feed_forwards=(
        FeedForward(
            inputs=("mlp.gate_proj", "mlp.up_proj"),
            output="mlp.down_proj",
            config_neurons="intermediate_size",
        ),
    ),
    causal=True,
)

QWEN3 = replace(LLAMA, model_types=("qwen3",)).with_attention(own_dims="values")
