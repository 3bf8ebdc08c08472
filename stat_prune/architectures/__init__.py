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
from stat_prune.architectures.bloom import BLOOM
from stat_prune.architectures.distilbert import DISTILBERT
from stat_prune.architectures.falcon import FALCON
from stat_prune.architectures.finding import find_blocks
from stat_prune.architectures.gemma import GEMMA
from stat_prune.architectures.gpt2 import GPT2
from stat_prune.architectures.gpt_neo import GPT_NEO
from stat_prune.architectures.gpt_neox import GPT_NEOX
from stat_prune.architectures.llama import LLAMA
from stat_prune.architectures.mixtral import MIXTRAL, QWEN_MOE
from stat_prune.architectures.olmo2 import OLMO2
from stat_prune.architectures.opt import OPT
from stat_prune.architectures.phi3 import PHI3

for _architecture in (
    *(BERT, ROBERTA, DISTILBERT),
    *(LLAMA, GPT2, GPT_NEO, GPT_NEOX, OPT, PHI3, GEMMA, OLMO2, FALCON, BLOOM, MIXTRAL, QWEN_MOE),
):
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
