"""Llama and the decoders that share its layer: Mistral, Qwen2, Qwen3.

Grouped-query attention and the gated feed-forward network. The config says the head size on its
own, so a model with the same sizes in every layer needs no code of ours to reload.
"""

from stat_prune.architectures.architecture import Architecture

LLAMA = Architecture(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    layers="layers",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    head_size_attribute="head_dim",
    head_counts={"num_key_value_groups": "heads_per_group"},
    feed_forward_inputs=("mlp.gate_proj", "mlp.up_proj"),
    feed_forward_output="mlp.down_proj",
    config_neurons="intermediate_size",
    config_heads=("num_attention_heads", "num_key_value_heads", "head_dim"),
    causal=True,
    stream_after_heads="post_attention_layernorm",
)
