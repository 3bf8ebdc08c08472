"""Where the blocks of a model family are: one short file a family, and the registry of them."""

from stat_prune.architectures.architecture import (
    Architecture,
    Attention,
    FeedForward,
    architecture_of,
    register_architecture,
    supported_model_types,
    transformer_layers,
)
from stat_prune.architectures.bert import BERT, ROBERTA
from stat_prune.architectures.distilbert import DISTILBERT
from stat_prune.architectures.finding import find_blocks
from stat_prune.architectures.llama import LLAMA

for _architecture in (BERT, ROBERTA, DISTILBERT, LLAMA):
    register_architecture(_architecture)

__all__ = [
    "Architecture",
    "Attention",
    "FeedForward",
    "architecture_of",
    "find_blocks",
    "register_architecture",
    "supported_model_types",
    "transformer_layers",
]
