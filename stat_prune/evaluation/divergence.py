"""How far a model's output is from another's: a score that needs no labels."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.settings.options import MASK_FRACTION


def divergence(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Any,
    *,
    num_samples: int = 512,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Mean distance of a model's output from that of the model it was made from.

    Parameters
    ----------
    dense, pruned : PreTrainedModel
        On one device; in evaluation mode meanwhile.
    tokenizer : PreTrainedTokenizerBase or None
    dataset : object
        Examples in any form that `stat_prune.prune` takes, and that nothing was chosen on.
    num_samples : int
        How many of them are drawn.
    batch_size : int
    seed : int
        Of the draw, and of the masks in texts for a masked language model.

    Returns
    -------
    dict of str to float
        ``divergence``: what `stat_prune.measuring.objectives.output_distance` says, on average: for
        logits the Kullback-Leibler divergence in nats, for a model without a head the squared error
        of its hidden states, relative to their norm. ``num_examples`` and ``num_tokens``.

    Raises
    ------
    DataError
        If there is no example.
    """
    examples = calibration_set_for(
        dense,
        dataset,
        tokenizer,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
        mask_fraction=MASK_FRACTION,
    )
    found = distance(dense, pruned, examples.batches, output_distance)
    return {
        "divergence": found,
        "num_examples": examples.num_samples,
        "num_tokens": examples.num_tokens,
    }
