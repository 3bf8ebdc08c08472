"""Small tokenizers of the two kinds that llama.cpp has for Llama-like models."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "the cat sat on the mat and then it ran under the house",
    "a dog and a bird sat on the mat",
    "then the dog ran and the cat ran",
]
VOCABULARY = 50
SPECIAL = ["<unk>", "<s>", "</s>"]


def _trained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    trainer = BpeTrainer(vocab_size=VOCABULARY - 1, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_tokens([AddedToken("<|user|>", normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}"
    return fast


def with_spaces() -> PreTrainedTokenizerFast:
    """As Llama 2 has one: spaces are a character, words begin with it."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _trained(tokenizer)


def byte_level(expression: str | None = None) -> PreTrainedTokenizerFast:
    """As GPT-2 has one, or with another expression that splits texts into words."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if expression is not None:
        from tokenizers import Regex

        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(expression), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer)
