"""Masks in the texts of models that predict masked tokens: what they read in use."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.errors import CalibrationWarning
from stat_prune.examples.input_rows import TokenRow


@dataclass(frozen=True)
class Masking:
    """Puts masks into texts without any.

    Attributes
    ----------
    mask_id : int
    special_ids : frozenset of int
        Tokens that are never masked.
    fraction : float
        Of the other tokens; at least one of each text.
    seed : int
    """

    mask_id: int
    special_ids: frozenset[int]
    fraction: float
    seed: int

    def __call__(self, rows: Sequence[TokenRow]) -> list[TokenRow]:
        """The rows with masks, or with those that are there, where a single one has some already.

        And with ``masked_tokens``, which says where: what a model is to predict. Which tokens are
        masked follows from the seed and a text's own tokens: neither the order nor the batches nor
        the other texts have a part in it.
        """
        if not self.count(rows):
            rows = [{**row, "input_ids": self._masked(row)} for row in rows]
        return [{**row, "masked_tokens": (row["input_ids"] == self.mask_id).long()} for row in rows]

    def count(self, rows: Sequence[TokenRow]) -> int:
        """Masks in all rows."""
        return sum(int((row["input_ids"] == self.mask_id).sum()) for row in rows)

    def _masked(self, row: TokenRow) -> Tensor:
        ids = row["input_ids"]
        special = torch.tensor(sorted(self.special_ids), dtype=ids.dtype)
        places = (row["attention_mask"].bool() & ~torch.isin(ids, special)).nonzero().squeeze(1)
        if not len(places):
            return ids
        digest = hashlib.sha256(ids.numpy().tobytes()).digest()
        generator = np.random.default_rng([self.seed, *digest])
        count = max(round(self.fraction * len(places)), 1)
        chosen = torch.from_numpy(generator.permutation(len(places))[:count])
        return ids.index_fill(0, places[chosen], self.mask_id)


def masking_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    fraction: float,
    seed: int,
    vocab_size: int | None,
) -> Masking | None:
    """What a model with a head for masked tokens asks for; None for others, and for no fraction.

    A `CalibrationWarning` says where no tokenizer tells which token is the mask.
    """
    if fraction == 0 or not type(model).__name__.endswith("ForMaskedLM"):
        return None
    mask_id = None if tokenizer is None else tokenizer.mask_token_id
    if tokenizer is None or mask_id is None or mask_id >= (vocab_size or mask_id + 1):
        missing = "no tokenizer" if tokenizer is None else "a tokenizer without a mask"
        warnings.warn(
            f"{type(model).__name__} predicts masked tokens, but with {missing} it is calibrated "
            "on the examples as they are. Pass tokenizer=AutoTokenizer.from_pretrained(...), or "
            "mask_fraction=0 where that is what the model reads in use.",
            CalibrationWarning,
            stacklevel=2,
        )
        return None
    return Masking(mask_id, frozenset(tokenizer.all_special_ids), fraction, seed)
