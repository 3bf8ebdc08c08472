"""How often tokens are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from stat_prune.data.batching import token_mask

#: Entries of a batch with ids of tokens, and their masks.
_IDS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def token_counts(batches: Iterable[Mapping[str, Tensor]], num_rows: int) -> Tensor:
    """How often each token is in some batches, padding left out; float64 of shape (num_rows,)."""
    counts = torch.zeros(num_rows, dtype=torch.float64)
    for batch in batches:
        for name, mask in _IDS.items():
            if name in batch:
                counts += torch.bincount(batch[name][token_mask(batch, mask)], minlength=num_rows)
    return counts
