"""Statistics of what each attention head attends to, streamed over a calibration set."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.attention.attention_maps import check_reads_one_text, run_with_attention
from stat_prune.attention.measures import Sums, of_classes, of_weights
from stat_prune.attention.tokens import TokenClasses
from stat_prune.checkpoints.pretrained import given_tokenizer
from stat_prune.data.batching import token_mask
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.errors import SettingsError
from stat_prune.inferring import describe
from stat_prune.machine.progress import progress_bar
from stat_prune.measuring.head_statistics import HeadStatistics
from stat_prune.model.blocks import Block
from stat_prune.model.model_checks import check_is_model
from stat_prune.model.processors import text_tokenizer
from stat_prune.model.running import Batch
from stat_prune.settings.arguments import check_number, flag, integer, seed_of

#: Weights below this count as zero in the sparsity.
THRESHOLD = 0.01


def head_statistics(
    model: PreTrainedModel,
    dataset: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    token_classes: TokenClasses | None = None,
    num_samples: int = 512,
    max_seq_length: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    threshold: float = THRESHOLD,
    progress: bool = True,
) -> HeadStatistics:
    """Measure what each attention head attends to, in one pass over the data.

    Exact for causal, bidirectional and sliding-window attention, with grouped queries, whatever
    the lengths. Memory does not grow with the number of examples: one layer's weights for one
    batch (all layers' of the few classes that return weights only where all are asked for).
    Attention is computed eagerly for the time of the pass.

    Parameters
    ----------
    model : PreTrainedModel
        Dense or pruned; unchanged when this returns.
    dataset : object
        As for `stat_prune.prune`.
    tokenizer : PreTrainedTokenizerBase or path, optional
        The model's own; needed where `dataset` is text, and for statistics of kinds of tokens.
    token_classes : TokenClasses, optional
        Default: those of `tokenizer`, with English function words.
    num_samples : int
        Examples drawn from `dataset`.
    max_seq_length : int, optional
        In tokens.
    batch_size : int
        Changes nothing beyond rounding.
    seed : int
        Decides which examples are drawn.
    threshold : float
        Weights below it count as zero in the sparsity.
    progress : bool
        Show a progress bar.

    Returns
    -------
    HeadStatistics

    Raises
    ------
    StatPruneError
        A subclass of it where data, model or threshold cannot be used.
    """
    check_is_model("model", model)
    tokenizer = text_tokenizer(given_tokenizer(tokenizer))
    _check_threshold(threshold)
    if max_seq_length is not None:
        max_seq_length = integer("max_seq_length", max_seq_length)
    describe(model)
    calibration = calibration_set_for(
        model,
        dataset,
        tokenizer,
        num_samples=integer("num_samples", num_samples),
        max_seq_length=max_seq_length,
        batch_size=integer("batch_size", batch_size),
        seed=seed_of(seed),
    )
    if token_classes is None and tokenizer is not None:
        token_classes = TokenClasses(tokenizer)
    batches = progress_bar(
        calibration.batches, shown=flag("progress", progress), desc="attention", unit="batch"
    )
    return stream_statistics(model, batches, token_classes, threshold=threshold)


def stream_statistics(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    token_classes: TokenClasses | None,
    *,
    threshold: float = THRESHOLD,
) -> HeadStatistics:
    """`head_statistics` of batches that are made already.

    Raises
    ------
    SettingsError
        If `threshold` is not between 0 and 1.
    """
    _check_threshold(threshold)
    sums: dict[str, Sums] = defaultdict(Sums)
    num_sequences = num_tokens = 0
    for batch in batches:
        check_reads_one_text(model, batch)
        masks = token_mask(batch)
        classes = [
            _classes(ids[mask], token_classes)
            for ids, mask in zip(batch["input_ids"], masks, strict=True)
        ]
        positions = [mask.nonzero().squeeze(1) for mask in masks]

        def add(
            block: Block,
            index: int,
            weights: Tensor,
            visible: Tensor,
            classes: list[Mapping[str, Tensor]] = classes,
            positions: list[Tensor] = positions,
        ) -> None:
            at = positions[index].to(weights.device)
            sums[block.name].add(of_weights(weights, visible, at, threshold))
            if classes[index]:
                known = {name: mask.to(weights.device) for name, mask in classes[index].items()}
                sums[block.name].add(of_classes(weights, visible, **known))

        run_with_attention(model, batch, add)
        num_sequences += len(masks)
        num_tokens += int(masks.sum())
    return HeadStatistics(
        {name: one.means() for name, one in sums.items()}, num_sequences, num_tokens, threshold
    )


def _check_threshold(threshold: Any) -> None:
    check_number("threshold", threshold)
    if not 0 < threshold < 1:
        raise SettingsError(f"`threshold` must lie between 0 and 1, got {threshold!r}.")


def _classes(ids: Tensor, token_classes: TokenClasses | None) -> Mapping[str, Tensor]:
    """Masks of a sequence's tokens by class; none where the tokenizer is not known."""
    if token_classes is None:
        return {}
    return {"special": token_classes.special(ids), "content": token_classes.content(ids)}
