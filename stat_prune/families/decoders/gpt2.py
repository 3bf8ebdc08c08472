"""GPT-2: transposed linear layers, query, key and value in one of them."""

from stat_prune.families.architecture import Architecture, Attention, FeedForward

GPT2 = Architecture(
    model_types=("gpt2",),
    layers="h",
    attentions=(
        Attention(
            module="attn",
            query="attn.c_attn",
            key="attn.c_attn",
            value="attn.c_attn",
            output="attn.c_proj",
            head_size="head_dim",
            counts={"num_heads": "heads", "split_size": "channels"},
            stream_after="ln_2",
            own_dims="all",
        ),
    ),
    feed_forwards=(FeedForward(("mlp.c_fc",), "mlp.c_proj", config_neurons="n_inner"),),
    causal=True,
)
