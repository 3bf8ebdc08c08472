"""What makes a model's inputs: a tokenizer, or a processor that may have one."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase


def processor_classes() -> tuple[type, ...]:
    """What makes inputs and is no tokenizer; imported where it is asked for, as it is a lot."""
    return (
        transformers.ProcessorMixin,
        transformers.FeatureExtractionMixin,
        transformers.ImageProcessingMixin,
    )


def text_tokenizer(given: Any) -> PreTrainedTokenizerBase | None:
    """What reads texts, of a tokenizer or a processor; None of what makes images or sounds only."""
    if given is None or isinstance(given, PreTrainedTokenizerBase):
        return given
    inside = getattr(given, "tokenizer", None)
    return inside if isinstance(inside, PreTrainedTokenizerBase) else None
