"""The calibration set of a model, within its limits."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.calibration import CalibrationSet, build_calibration_set
from stat_prune.data.completion import Completion
from stat_prune.data.masking import masking_for
from stat_prune.errors import CalibrationWarning
from stat_prune.families import architecture_of, token_embeddings
from stat_prune.model.processors import text_tokenizer

#: Rows of embeddings without a token, as a fraction of all and at least: those that only make their
#: number a multiple of something are fewer (Phi-2 has the most, 1.8 %).
_FEW, _SOME = 0.03, 1000


def calibration_set_for(
    model: PreTrainedModel,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    mask_fraction: float = 0.0,
    **options: Any,
) -> CalibrationSet:
    """`build_calibration_set` within the limits of a model; the same options.

    With a `mask_fraction`, models that predict masked tokens read texts with masks. A
    `CalibrationWarning` says that a tokenizer seems to be another model's.
    """
    embeddings, tokenizer = token_embeddings(model), text_tokenizer(tokenizer)
    vocab_size = None if embeddings is None else len(embeddings.weight)
    if tokenizer is not None and vocab_size is not None:
        _check_is_of_model(tokenizer, vocab_size)
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


def _check_is_of_model(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Warn of a tokenizer with far fewer tokens than the model has embeddings.

    Its ids are all known to the model, to which they mean something else.
    """
    unused = vocab_size - len(tokenizer)
    if unused > max(_FEW * vocab_size, _SOME):
        warnings.warn(
            f"The tokenizer has {len(tokenizer):,} tokens, and the model embeddings for "
            f"{vocab_size:,}. If it is another model's, the calibration texts mean nothing to this "
            "one: load both from the same checkpoint.",
            CalibrationWarning,
            stacklevel=2,
        )
