"""BERT and the models that share its layer: RoBERTa, XLM-RoBERTa, ELECTRA, CamemBERT."""

from dataclasses import replace

from stat_prune.families.architecture import Architecture, Attention, FeedForward

BERT = Architecture(
    model_types=("bert", "electra"),
    layers="encoder.layer",
    attentions=(
        Attention(
            module="attention.self",
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            output="attention.output.dense",
            head_size="attention_head_size",
            counts={"num_attention_heads": "heads", "all_head_size": "channels"},
            stream_after="attention.output.LayerNorm",
            own_dims="all",
        ),
    ),
    feed_forwards=(
        FeedForward(
            inputs=("intermediate.dense",),
            output="output.dense",
            config_neurons="intermediate_size",
            stream_after="output.LayerNorm",
        ),
    ),
    embedding_projection="embeddings_project",  # ELECTRA's
)

ROBERTA = replace(
    BERT, model_types=("roberta", "xlm-roberta", "camembert"), positions_after_padding=True
)
