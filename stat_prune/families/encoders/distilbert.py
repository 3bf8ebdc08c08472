"""DistilBERT."""

from stat_prune.families.architecture import Architecture, Attention, FeedForward

DISTILBERT = Architecture(
    model_types=("distilbert",),
    layers="transformer.layer",
    attentions=(
        Attention(
            module="attention",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
            head_size="attention_head_size",
            counts={"n_heads": "heads"},
            stream_after="sa_layer_norm",
            own_dims="all",
        ),
    ),
    feed_forwards=(
        FeedForward(
            inputs=("ffn.lin1",),
            output="ffn.lin2",
            config_neurons="hidden_dim",
            stream_after="output_layer_norm",
        ),
    ),
)
