"""Rows of model inputs become padded batches, and batches rows again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stat_prune.errors import DataError
from stat_prune.examples.input_rows import SIGNALS, TOKENS_OF, TokenRow


def token_mask(batch: Mapping[str, Tensor], mask: str = "attention_mask") -> Tensor:
    """Where a batch holds real tokens, or positions of an image or a sound.

    Parameters
    ----------
    batch : mapping of str to Tensor
    mask : str
        The entry that says so.

    Returns
    -------
    Tensor of shape (batch, sequence), bool
        All true where the batch has no such entry.
    """
    if mask in batch:
        return batch[mask].bool()
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


def masks_in(batch: Mapping[str, Tensor]) -> list[str]:
    """The entries that say what is real; first that of what the model reads first."""
    return sorted((name for name in batch if name.endswith("_mask")), key=_mask_order)


def _mask_order(name: str) -> tuple[bool, bool, str]:
    return name.startswith("decoder"), name != "attention_mask", name


def num_sequences(batch: Mapping[str, Tensor]) -> int:
    """Examples in a batch."""
    return len(next(iter(batch.values())))


def row_length(row: Mapping[str, Tensor]) -> int:
    """Tokens (or positions) of what the model reads first, with what padding is among them."""
    return len(row[masks_in(row)[0]])


def digest(row: TokenRow) -> str:
    """Of what a model reads: neither labels nor what it is to predict has a part in it."""
    content = hashlib.sha256()
    for name in sorted(row.keys() - {"labels", "masked_tokens"}):
        content.update(name.encode() + row[name].numpy().tobytes())
    return content.hexdigest()


def padded(rows: Sequence[TokenRow], pad_token_id: int) -> dict[str, Tensor]:
    """One batch, padded on the right.

    Raises
    ------
    DataError
        If images or sounds differ in size.
    """
    # Rows of mixed origin (texts beside token ids) may not all have token types.
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: _column(name, [row[name] for row in rows], pad_token_id) for name in names}


def _column(name: str, values: list[Tensor], pad_token_id: int) -> Tensor:
    if name == "labels":
        return torch.tensor([value.item() for value in values])
    if name in SIGNALS:
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise DataError(
                f"The examples' {name!r} differ in size: {sorted(shapes)[:3]}. Let the model's "
                "processor bring them to one."
            )
        return torch.stack(values)
    padding = pad_token_id if name.endswith("input_ids") else 0
    return pad_sequence(values, batch_first=True, padding_value=padding)


def unpadded(batch: Mapping[str, Tensor], index: int) -> TokenRow:
    """Take one row out of a padded batch again."""
    row = {name: value[index] for name, value in batch.items()}
    for mask, names in TOKENS_OF.items():
        if mask in row:
            stop = int(row[mask].nonzero()[-1]) + 1
            row |= {name: row[name][:stop] for name in names if name in row}
    return row
