"""Model inputs that no data is needed for, and those that a divergence is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.calibration import CalibrationSet
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.settings.options import MASK_FRACTION

#: By what examples for a divergence are drawn, apart from any calibration's seed.
UNSEEN_SEED = 99


def random_tokens(
    model: PreTrainedModel, samples: int, length: int, seed: int
) -> dict[str, torch.Tensor]:
    """Token ids without padding: which ones they are changes no time."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (samples, length), generator=generator)
    ids = ids.to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def drawn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    examples: Sequence[Any],
    count: int,
) -> CalibrationSet:
    """So many of the examples as batches, always the same ones."""
    places = np.random.default_rng(UNSEEN_SEED).permutation(len(examples))[:count]
    return calibration_set_for(
        model,
        [examples[place] for place in places],
        tokenizer,
        num_samples=count,
        num_held_out=0,
        max_seq_length=None,
        batch_size=32,
        seed=1,
        mask_fraction=MASK_FRACTION,
    )
