"""Masked language models: how many of the tokens behind masks they name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.masking import Masking
from stat_prune.errors import DataError
from stat_prune.model.dispatched import input_device
from stat_prune.model.running import evaluating, model_inputs
from stat_prune.settings.options import MASK_FRACTION

#: Tokens of a text that are read at most, where the tokenizer names no limit.
_MAX_LENGTH = 512


def masked_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    mask_fraction: float = MASK_FRACTION,
    seed: int = 0,
    batch_size: int = 16,
) -> float:
    """Fraction of masked tokens that the model's likeliest token is right about.

    Parameters
    ----------
    model : PreTrainedModel
        With a head for masked tokens.
    tokenizer : PreTrainedTokenizerBase
        With a mask.
    texts : sequence of str
        Longer ones are cut to 512 tokens, or to what the tokenizer admits.
    mask_fraction : float
        Of a text's tokens but special ones; which are masked follows from the text and `seed`.
    seed : int
    batch_size : int

    Returns
    -------
    float

    Raises
    ------
    DataError
        If there is nothing to mask, or the tokenizer has no mask.
    """
    if tokenizer.mask_token_id is None:
        raise DataError(f"{type(tokenizer).__name__} has no mask token: there is nothing to name.")
    mask = Masking(
        tokenizer.mask_token_id, frozenset(tokenizer.all_special_ids), mask_fraction, seed
    )
    limit = min(tokenizer.model_max_length, _MAX_LENGTH)
    encoded = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    whole = sorted((torch.tensor(ids) for ids in encoded), key=len, reverse=True)
    rows = mask([{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in whole])
    device = input_device(model)
    right = total = 0
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            batch = {
                name: pad_sequence([row[name] for row in part], batch_first=True)
                for name in ("input_ids", "attention_mask")
            }
            expected = pad_sequence(whole[start : start + batch_size], batch_first=True)
            found = model(**model_inputs(model, batch, device)).logits.argmax(-1).cpu()
            masked = (batch["input_ids"] == mask.mask_id) & batch["attention_mask"].bool()
            right += int((found == expected)[masked].sum())
            total += int(masked.sum())
    if not total:
        raise DataError("No token of the texts can be masked. Pass longer ones.")
    return right / total
