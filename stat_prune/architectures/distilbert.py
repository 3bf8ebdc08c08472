"""DistilBERT."""

from stat_prune.architectures.architecture import Architecture

DISTILBERT = Architecture(
    model_types=("distilbert",),
    layers="transformer.layer",
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    head_size_attribute="attention_head_size",
    head_counts={"n_heads": "heads"},
    feed_forward_inputs=("ffn.lin1",),
    feed_forward_output="ffn.lin2",
    config_neurons="hidden_dim",
    stream_after_heads="sa_layer_norm",
    stream_after_neurons="output_layer_norm",
)
