"""MPNet: BERT's layer, with one bias of relative positions for the heads of all layers."""

from stat_prune.families.architecture import Architecture, Attention
from stat_prune.families.encoders.bert import BERT

MPNET = Architecture(
    model_types=("mpnet",),
    layers="encoder.layer",
    attentions=(
        Attention(
            module="attention.attn",
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            output="attention.attn.o",
            head_size="attention_head_size",
            counts={"num_attention_heads": "heads", "all_head_size": "channels"},
            stream_after="attention.LayerNorm",
            position_bias="all heads",
        ),
    ),
    feed_forwards=BERT.feed_forwards,
    positions_after_padding=True,
)
