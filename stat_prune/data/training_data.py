"""Training examples: rows of tokens, their labels, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import get_length_grouped_indices

from stat_prune.data.batching import padded, token_mask
from stat_prune.data.calibration import CalibrationSet
from stat_prune.errors import DataError
from stat_prune.examples.input_rows import TokenRow
from stat_prune.model.running import Batch

#: What transformers' losses leave out.
IGNORED = -100

#: Batches that are sorted by length together.
_POOL = 50


class TrainingSet(Dataset[TokenRow]):
    """Rows for a DataLoader.

    Parameters
    ----------
    rows : list of TokenRow
    pad_token_id : int
    """

    def __init__(self, rows: list[TokenRow], pad_token_id: int) -> None:
        self.rows, self.pad_token_id = rows, pad_token_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenRow:
        return self.rows[index]

    def collate(self, rows: list[TokenRow]) -> dict[str, Tensor]:
        """A batch, padded on the right."""
        return padded(rows, self.pad_token_id)


class BatchesOfOneLength(Sampler[int]):
    """Batches of sequences about as long as each other, in a random order, anew every epoch.

    Trainer's own grouping does not sort at all what is less than eight batches, so that few data
    would be padded more than many, and goes from the longest to the shortest in every pool, so that
    a run of less than a pool would see no short sequence.

    Parameters
    ----------
    lengths : list of int
    batch_size : int
    seed : int
        With the epoch, it decides about the order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer says which one begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        size = self.batch_size
        indices = get_length_grouped_indices(self.lengths, size, _POOL, generator)
        whole = len(indices) // size
        # what fills no batch stays at the end: in between, it would shift all others
        for batch in [*torch.randperm(whole, generator=generator).tolist(), whole]:
            yield from indices[batch * size : (batch + 1) * size]


def training_set(examples: CalibrationSet, fraction: float, *, seed: int) -> TrainingSet:
    """A fraction of the examples, drawn evenly over the lengths."""
    count = math.ceil(fraction * examples.num_samples)
    return TrainingSet(examples.drawn(count, seed=seed), examples.pad_token_id)


def predicts_next_tokens(model: PreTrainedModel) -> bool:
    """Whether texts are their own labels."""
    return getattr(model, "loss_type", None) == "ForCausalLM"


def uses_labels(model: PreTrainedModel, examples: CalibrationSet, labels: bool | None) -> bool:
    """Whether there is a task loss.

    Parameters
    ----------
    model : PreTrainedModel
    examples : CalibrationSet
    labels : bool, optional
        What the user wants; None for labels where there are some.

    Raises
    ------
    DataError
        If labels are wanted and examples have none, or a label is no class of the model.
    """
    if labels is False:
        return False
    if predicts_next_tokens(model):
        return True
    unlabelled = sum(len(b["input_ids"]) for b in examples.batches if "labels" not in b)
    decides = getattr(model, "loss_type", None) == "ForSequenceClassification"
    if labels and (unlabelled or not decides):
        reason = (
            f"{unlabelled} of {examples.num_samples} examples have no label"
            if unlabelled
            else f"{type(model).__name__} does not decide about whole sequences"
        )
        raise DataError(
            f"labels=True asks for a task loss, but {reason}. Give each example one number in a "
            "column 'label' and load the model with its sequence classification head, or pass "
            "labels=False to learn from the teacher alone."
        )
    if unlabelled or not decides:
        return False
    _check_classes(model, examples)
    return True


def _check_classes(model: PreTrainedModel, examples: CalibrationSet) -> None:
    count = model.config.num_labels or 1
    if count == 1:
        return
    labels = torch.cat([batch["labels"] for batch in examples.batches])
    wrong = (labels != labels.round()) | (labels < 0) | (labels >= count)
    if bool(wrong.any()):
        raise DataError(
            f"The label {labels[wrong][0].item()!r} is none of the model's classes 0 to "
            f"{count - 1}. Pass the labels that the model was trained with, or labels=False."
        )


def task_labels(model: PreTrainedModel, batch: Batch) -> Any:
    """The labels as the model's own loss takes them, on its device."""
    device = next(model.parameters()).device
    if predicts_next_tokens(model):
        labels = batch["input_ids"].masked_fill(~token_mask(batch), IGNORED)
        return labels.to(device)
    labels = batch["labels"].to(device)
    return labels.to(model.dtype) if model.config.num_labels == 1 else labels.long()
