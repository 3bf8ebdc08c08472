"""ModernBERT: query, key and value in one layer, and a gated feed-forward network in one."""

from stat_prune.families.architecture import Architecture, Attention, FeedForward

MODERNBERT = Architecture(
    model_types=("modernbert",),
    layers="layers",
    attentions=(
        Attention(
            module="attn",
            query="attn.Wqkv",
            key="attn.Wqkv",
            value="attn.Wqkv",
            output="attn.Wo",
            head_size="head_dim",
            stream_after="mlp_norm",
        ),
    ),
    feed_forwards=(
        FeedForward(
            inputs=("mlp.Wi", "mlp.Wi"), output="mlp.Wo", config_neurons="intermediate_size"
        ),
    ),
)
