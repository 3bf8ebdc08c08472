"""GPT-Neo: global and local attention in turns, both the same to the pruner."""

from stat_prune.families.architecture import Architecture, Attention, FeedForward

GPT_NEO = Architecture(
    model_types=("gpt_neo",),
    layers="h",
    attentions=(
        Attention(
            module="attn.attention",
            query="attn.attention.q_proj",
            key="attn.attention.k_proj",
            value="attn.attention.v_proj",
            output="attn.attention.out_proj",
            head_size="head_dim",
            counts={"num_heads": "heads"},
            stream_after="ln_2",
        ),
    ),
    feed_forwards=(FeedForward(("mlp.c_fc",), "mlp.c_proj", config_neurons="intermediate_size"),),
    causal=True,
)
