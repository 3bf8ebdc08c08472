"""BERT and the models that share its layer: RoBERTa, XLM-RoBERTa, ELECTRA, CamemBERT."""

from dataclasses import replace

from stat_prune.architectures.architecture import Architecture

BERT = Architecture(
    model_types=("bert", "electra"),
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    head_size_attribute="attention_head_size",
    head_counts={"num_attention_heads": "heads", "all_head_size": "channels"},
    feed_forward_inputs=("intermediate.dense",),
    feed_forward_output="output.dense",
    config_neurons="intermediate_size",
    stream_after_heads="attention.output.LayerNorm",
    stream_after_neurons="output.LayerNorm",
)

ROBERTA = replace(
    BERT, model_types=("roberta", "xlm-roberta", "camembert"), positions_after_padding=True
)
