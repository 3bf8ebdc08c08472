"""The calibration set of a model, within its limits."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.calibration import CalibrationSet, build_calibration_set
from stat_prune.data.completion import Completion
from stat_prune.data.masking import masking_for
from stat_prune.families import architecture_of, token_embeddings
from stat_prune.model.processors import text_tokenizer


def calibration_set_for(
    model: PreTrainedModel,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    mask_fraction: float = 0.0,
    **options: Any,
) -> CalibrationSet:
    """`build_calibration_set` within the limits of a model; the same options.

    With a `mask_fraction`, models that predict masked tokens read texts with masks.
    """
    embeddings, tokenizer = token_embeddings(model), text_tokenizer(tokenizer)
    vocab_size = None if embeddings is None else len(embeddings.weight)
    return build_calibration_set(
        dataset,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        masking=masking_for(
            model,
            tokenizer,
            fraction=mask_fraction,
            seed=options.get("seed", 0),
            vocab_size=vocab_size,
        ),
        max_positions=architecture_of(model).max_positions(model.config),
        pad_token_id=getattr(model.config, "pad_token_id", None),
        complete=Completion(model),
        **options,
    )
