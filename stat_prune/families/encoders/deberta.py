"""DeBERTa v2 and v3: heads that also read relative positions."""

from typing import Any

from stat_prune.families.architecture import Architecture, Attention
from stat_prune.families.encoders.bert import BERT


def _position_macs(config: Any) -> tuple[float, float]:
    """Multiply-accumulates for each channel: to project all positions, and to score them.

    Disentangled attention (He et al. 2021, arXiv:2006.03654, section 3.1) projects the embeddings
    of all relative positions once, and multiplies every token's query (content to position) and key
    (position to content) with each of them.
    """
    # Fields that a config may lack are what transformers then takes them for.
    if not getattr(config, "relative_attention", False):
        return 0.0, 0.0
    kinds = sum(kind in (getattr(config, "pos_att_type", None) or ()) for kind in ("c2p", "p2c"))
    span = getattr(config, "position_buckets", -1)
    if span < 1:
        span = getattr(config, "max_relative_positions", -1)
    if span < 1:
        span = config.max_position_embeddings
    projections = 2 if getattr(config, "share_att_key", False) else kinds
    return 2.0 * span * projections * config.hidden_size, 2.0 * span * kinds


DEBERTA_V2 = Architecture(
    model_types=("deberta-v2",),
    layers="encoder.layer",
    attentions=(
        Attention(
            module="attention.self",
            query="attention.self.query_proj",
            key="attention.self.key_proj",
            value="attention.self.value_proj",
            output="attention.output.dense",
            head_size="attention_head_size",
            counts={"num_attention_heads": "heads", "all_head_size": "channels"},
            stream_after="attention.output.LayerNorm",
            position_producers=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
            position_macs=_position_macs,
        ),
    ),
    feed_forwards=BERT.feed_forwards,
    embedding_projection="embeddings.embed_proj",
)
