"""Where the blocks of a model family are: one short file a family, and the registry of them."""

from stat_prune.families.architecture import Architecture, Attention, FeedForward
from stat_prune.families.decoders.bloom import BLOOM
from stat_prune.families.decoders.falcon import FALCON
from stat_prune.families.decoders.gemma import GEMMA2, GEMMA3
from stat_prune.families.decoders.gpt2 import GPT2
from stat_prune.families.decoders.gpt_neo import GPT_NEO
from stat_prune.families.decoders.gpt_neox import GPT_NEOX
from stat_prune.families.decoders.llama import LLAMA, QWEN3
from stat_prune.families.decoders.mixtral import MIXTRAL, QWEN_MOE
from stat_prune.families.decoders.olmo2 import OLMO2
from stat_prune.families.decoders.opt import OPT
from stat_prune.families.decoders.phi3 import PHI3
from stat_prune.families.encoder_decoders.bart import BART
from stat_prune.families.encoder_decoders.t5 import T5
from stat_prune.families.encoder_decoders.whisper import WHISPER
from stat_prune.families.encoders.albert import ALBERT
from stat_prune.families.encoders.bert import BERT, ROBERTA
from stat_prune.families.encoders.deberta import DEBERTA_V2
from stat_prune.families.encoders.distilbert import DISTILBERT
from stat_prune.families.encoders.modernbert import MODERNBERT
from stat_prune.families.encoders.mpnet import MPNET
from stat_prune.families.finding import (
    embedding_projection,
    find_blocks,
    input_embeddings,
    token_embeddings,
)
from stat_prune.families.registry import (
    architecture_of,
    attentions_of,
    register_architecture,
    remember,
    stacks_of,
    supported_model_types,
    transformer_layers,
)
from stat_prune.families.vision.clip import CLIP, CLIP_TEXT, CLIP_VISION
from stat_prune.families.vision.vit import DINOV2, VIT

for _architecture in (
    *(ALBERT, BERT, DEBERTA_V2, DISTILBERT, MODERNBERT, MPNET, ROBERTA),
    *(BART, T5, WHISPER),
    *(CLIP, CLIP_TEXT, CLIP_VISION, DINOV2, VIT),
    *(LLAMA, QWEN3, GPT2, GPT_NEO, GPT_NEOX, OPT, PHI3, GEMMA2, GEMMA3, OLMO2, FALCON, BLOOM),
    *(MIXTRAL, QWEN_MOE),
):
    register_architecture(_architecture)

__all__ = [
    "Architecture",
    "Attention",
    "FeedForward",
    "architecture_of",
    "attentions_of",
    "embedding_projection",
    "find_blocks",
    "input_embeddings",
    "register_architecture",
    "remember",
    "stacks_of",
    "supported_model_types",
    "token_embeddings",
    "transformer_layers",
]
