"""Where the blocks of a model family are: one short file a family, and the registry of them."""

from stat_prune.architectures.albert import ALBERT
from stat_prune.architectures.architecture import Architecture, Attention, FeedForward
from stat_prune.architectures.bart import BART
from stat_prune.architectures.bert import BERT, ROBERTA
from stat_prune.architectures.bloom import BLOOM
from stat_prune.architectures.clip import CLIP, CLIP_TEXT, CLIP_VISION
from stat_prune.architectures.deberta import DEBERTA_V2
from stat_prune.architectures.distilbert import DISTILBERT
from stat_prune.architectures.falcon import FALCON
from stat_prune.architectures.finding import find_blocks, token_embeddings
from stat_prune.architectures.gemma import GEMMA
from stat_prune.architectures.gpt2 import GPT2
from stat_prune.architectures.gpt_neo import GPT_NEO
from stat_prune.architectures.gpt_neox import GPT_NEOX
from stat_prune.architectures.llama import LLAMA
from stat_prune.architectures.mixtral import MIXTRAL, QWEN_MOE
from stat_prune.architectures.modernbert import MODERNBERT
from stat_prune.architectures.mpnet import MPNET
from stat_prune.architectures.olmo2 import OLMO2
from stat_prune.architectures.opt import OPT
from stat_prune.architectures.phi3 import PHI3
from stat_prune.architectures.registry import (
    architecture_of,
    register_architecture,
    stacks_of,
    supported_model_types,
    transformer_layers,
)
from stat_prune.architectures.t5 import T5
from stat_prune.architectures.vit import DINOV2, VIT
from stat_prune.architectures.whisper import WHISPER

for _architecture in (
    *(ALBERT, BERT, DEBERTA_V2, DISTILBERT, MODERNBERT, MPNET, ROBERTA),
    *(BART, T5, WHISPER),
    *(CLIP, CLIP_TEXT, CLIP_VISION, DINOV2, VIT),
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
    "stacks_of",
    "supported_model_types",
    "token_embeddings",
    "transformer_layers",
]
