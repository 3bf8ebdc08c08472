"""Calibration data: any dataset becomes batches of model inputs, padding marked in each."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stat_prune.data.batching import digest, masks_in, padded, row_length, unpadded
from stat_prune.data.masking import Masking
from stat_prune.data.token_rows import labelled, tokenized, without_padding, without_targets
from stat_prune.errors import DataError
from stat_prune.examples.input_rows import TokenRow
from stat_prune.examples.iterating import LabelledExample, iterate_labelled_examples
from stat_prune.settings.settings import MIN_HELD_OUT

DEFAULT_MAX_TEXT_LENGTH = 512


@dataclass(frozen=True)
class CalibrationSet:
    """Batches of model inputs on the CPU, longest sequences first.

    Attributes
    ----------
    batches : list of dict of str to Tensor
        Tokens of shape (batch, sequence), int64, padded on the right to the longest row of the
        batch; whatever a model reads, masks say what of it is real: ``attention_mask`` for texts.
        Where the data has them, ``labels`` of shape (batch,); models never get to see them.
    num_samples, num_tokens : int
        Sequences, and tokens (positions of images or sounds) without padding.
    fingerprint : str
        sha256 of the tokens and masks of all sequences, whatever their order, batching and padding.
    batch_size, pad_token_id : int
        How the batches were made.
    num_masked : int
        Masks among the tokens, for models that predict what is behind them.
    held_out : CalibrationSet or None
        Other sequences of the same data, for choosing between results that were made from these.
    """

    batches: list[dict[str, Tensor]]
    num_samples: int
    num_tokens: int
    fingerprint: str
    batch_size: int
    pad_token_id: int
    num_masked: int = 0
    held_out: CalibrationSet | None = None

    @property
    def mean_length(self) -> float:
        """Tokens a sequence, without padding."""
        return self.num_tokens / self.num_samples

    @property
    def main_mask(self) -> str:
        """The entry of each batch that marks the tokens of what the model reads first."""
        return masks_in(self.batches[0])[0]

    @property
    def mean_lengths(self) -> dict[str, float]:
        """Tokens or positions a sequence, without padding, by the name of their mask."""
        return {mask: count / self.num_samples for mask, count in self.tokens_by_mask.items()}

    @property
    def tokens_by_mask(self) -> dict[str, int]:
        """Tokens or positions, without padding, by the name of their mask."""
        return {
            mask: sum(int(batch[mask].sum()) for batch in self.batches)
            for mask in masks_in(self.batches[0])
        }

    def subset(
        self,
        num_samples: int,
        *,
        seed: int,
        batch_size: int | None = None,
        max_length: int | None = None,
    ) -> CalibrationSet:
        """Draw sequences spread evenly over the lengths: one at random from each quantile.

        Parameters
        ----------
        num_samples : int
            At least 1; everything where there are no more than that.
        seed : int
        batch_size : int, optional
            By default that of this set.
        max_length : int, optional
            Tokens that longer sequences are cut to, on the right.
        """
        rows = self.drawn(num_samples, seed=seed)
        if max_length is not None:
            rows = [row for one in rows if (row := without_padding(one, max_length)) is not None]
        return _from_rows(rows, batch_size or self.batch_size, self.pad_token_id)

    def drawn(self, num_samples: int, *, seed: int) -> list[TokenRow]:
        """The rows of `subset`, longest first and without padding."""
        _check_positive("num_samples", num_samples)
        return self._rows(_spread(self.num_samples, num_samples, seed))

    def rows(self) -> list[TokenRow]:
        """All of them, longest first and without padding."""
        return self._rows(range(self.num_samples))

    def _rows(self, indices: Iterable[int]) -> list[TokenRow]:
        places = (divmod(index, self.batch_size) for index in indices)
        return [unpadded(self.batches[batch], row) for batch, row in places]

    def split(self, num_held_out: int, *, seed: int) -> tuple[CalibrationSet, CalibrationSet]:
        """Two parts of the set: what is left, and sequences held out, spread over the lengths.

        Parameters
        ----------
        num_held_out : int
            At least 1, and less than there are sequences.
        seed : int
        """
        _check_positive("num_held_out", num_held_out)
        if num_held_out >= self.num_samples:
            raise DataError(
                f"{num_held_out} of {self.num_samples} calibration sequences cannot be held out. "
                "Use more examples."
            )
        held = _spread(self.num_samples, num_held_out, seed)
        rest = sorted(set(range(self.num_samples)) - set(held))
        parts = (self._rows(indices) for indices in (rest, held))
        remaining, held_out = (
            _from_rows(part, self.batch_size, self.pad_token_id) for part in parts
        )
        return remaining, held_out


def _spread(total: int, count: int, seed: int) -> list[int]:
    """Indices of so many of `total` things, one drawn from each quantile."""
    edges = np.linspace(0, total, min(count, total) + 1).round().astype(int)
    drawn: list[int] = np.random.default_rng(seed).integers(edges[:-1], edges[1:]).tolist()
    return drawn


def build_calibration_set(
    dataset: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    num_samples: int = 512,
    num_held_out: int = 0,
    max_seq_length: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    vocab_size: int | None = None,
    max_positions: int | None = None,
    pad_token_id: int | None = None,
    complete: Callable[[TokenRow], TokenRow] = without_targets,
    masking: Masking | None = None,
) -> CalibrationSet:
    """Draw, tokenize and batch examples, which need no labels.

    Padding never influences a result: rows are stored without it, batches are padded on the right
    (whatever the tokenizer's side is; there, neither causal attention nor absolute positions
    see it), and every batch says where it is. A number for each example in a column ``labels`` or
    ``label`` comes along for methods that ask for it, and changes nothing else.

    Parameters
    ----------
    dataset : object
        One of: a list of strings or of pairs of strings; a ``datasets.Dataset``,
        ``IterableDataset`` or dictionary of splits (``train`` is taken) with a text column or two
        of the usual names, or with ``input_ids`` (``pixel_values``, ``input_features``); a
        ``DataLoader`` or any iterable of model inputs, with or without batch dimension; one batch;
        a table of pandas, pyarrow or polars, or a dictionary of columns; a path to a text file (one
        example a line), JSON, JSONL, CSV, TSV (all in UTF-8, or UTF-16 with its mark; also
        ``.gz``), parquet or arrow file, or to a dataset folder; a name for
        ``datasets.load_dataset``, with its configuration after a slash ("glue/sst2").
        Records may hold conversations (``messages`` with role and content, or ``conversations`` as
        ShareGPT has them), which go through the tokenizer's chat template, and words already split
        (``tokens``). Of answers ``chosen`` and ``rejected`` the chosen ones are read. Texts that
        are blank or null are left out.
    tokenizer : PreTrainedTokenizerBase, optional
        Needed for texts; it must be the one of the model.
    num_samples : int
        Where there are more, so many are drawn at random. Which ones depends on `seed` and on
        their order in the source; the order of the chosen ones has no influence. A ``DataLoader``
        or generator is read from its beginning instead, so shuffle it yourself.
    num_held_out : int
        Examples to draw besides, for `CalibrationSet.held_out`. Where there are not so many, as
        large a part of those that there are is held out; but none below `MIN_HELD_OUT`.
    max_seq_length : int, optional
        In tokens; longer examples are cut on the right. By default what tokenizer and model admit;
        for texts not more than 512.
    batch_size : int
    seed : int
    vocab_size : int, optional
        Number of the model's token embeddings; token ids are checked against it.
    max_positions : int, optional
        Longest sequence that the model admits.
    pad_token_id : int, optional
        By default the tokenizer's, else its end of sequence, else 0. Padding is masked.
    complete : callable
        Makes of a row what the model reads (`stat_prune.data.completion.Completion`). By default a
        model reads texts with one stack of layers.
    masking : Masking, optional
        Puts masks into the texts where there are none.

    Returns
    -------
    CalibrationSet

    Raises
    ------
    DataError
        Nothing or only padding in `dataset`; texts without tokenizer; token ids outside the
        vocabulary; a dataset that cannot be found or has no text column.
    """
    _check_positive("num_samples", num_samples)
    _check_positive("batch_size", batch_size)
    if max_seq_length is not None:
        _check_positive("max_seq_length", max_seq_length)

    limits = [limit for limit in (max_seq_length, max_positions) if limit is not None]
    text_limits = [*limits, tokenizer.model_max_length] if tokenizer is not None else limits
    if max_seq_length is None:
        text_limits = [*text_limits, DEFAULT_MAX_TEXT_LENGTH]

    num_examples = 0
    texts: list[LabelledExample] = []
    rows: list[TokenRow] = []
    for example, label in iterate_labelled_examples(dataset, seed=seed):
        num_examples += 1
        if isinstance(example, dict):
            row = without_padding(example, min(limits, default=None))
            rows += [labelled(row, label)] if row is not None else []
        else:
            texts.append((example, label))
        if len(texts) + len(rows) == num_samples + num_held_out:
            break
    rows += tokenized(texts, tokenizer, min(text_limits))

    if not num_examples:
        raise DataError(
            "The calibration dataset is empty. Pass a few hundred examples of what the model reads."
        )
    if not rows:
        raise DataError(
            f"The calibration dataset holds only padding: none of {num_examples} examples has a "
            "token with attention_mask 1. Pass the mask as the tokenizer made it (1 = token)."
        )
    rows = [complete(row) for row in rows]
    if masking is not None:
        rows = masking(rows)
    if vocab_size is not None:
        _check_vocabulary(rows, vocab_size)
    padding = _pad_token_id(tokenizer, pad_token_id, vocab_size)
    found = _split_off(rows, num_samples, num_held_out, batch_size, padding, seed)
    if masking is None:
        return found
    return dataclasses.replace(found, num_masked=masking.count(found.rows()))


def _split_off(
    rows: Sequence[TokenRow],
    num_samples: int,
    num_held_out: int,
    batch_size: int,
    pad_token_id: int,
    seed: int,
) -> CalibrationSet:
    """A calibration set, with what is held out where that was asked for."""
    if num_held_out and len(rows) == num_samples + num_held_out:
        found, held_out = (
            _from_rows(part, batch_size, pad_token_id)
            for part in (rows[:num_samples], rows[num_samples:])
        )
        return dataclasses.replace(found, held_out=held_out)
    found = _from_rows(rows, batch_size, pad_token_id)
    count = len(rows) * num_held_out // (num_samples + num_held_out)
    if count < MIN_HELD_OUT:
        return found
    found, held_out = found.split(count, seed=seed)
    return dataclasses.replace(found, held_out=held_out)


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise DataError(f"{name} must be an integer, got {value!r}.")
    if value < 1:
        raise DataError(f"{name} must be at least 1, got {value}.")


def _check_vocabulary(rows: Sequence[TokenRow], vocab_size: int) -> None:
    ids = [value for row in rows for name, value in row.items() if name.endswith("input_ids")]
    largest = max((int(value.max()) for value in ids), default=0)
    smallest = min((int(value.min()) for value in ids), default=0)
    if smallest < 0 or largest >= vocab_size:
        raise DataError(
            f"Token id {largest if largest >= vocab_size else smallest} is outside the model's "
            f"vocabulary of {vocab_size}. This means that the tokenizer does not fit the model: "
            "load both from the same checkpoint."
        )


def _pad_token_id(
    tokenizer: PreTrainedTokenizerBase | None, given: int | None, vocab_size: int | None
) -> int:
    candidates = [given]
    if tokenizer is not None:
        candidates += [tokenizer.pad_token_id, tokenizer.eos_token_id]
    for candidate in candidates:
        # A pad token added to the tokenizer alone has no embedding in the model.
        if candidate is not None and 0 <= candidate < (vocab_size or candidate + 1):
            return candidate
    return 0


def _from_rows(rows: Sequence[TokenRow], batch_size: int, pad_token_id: int) -> CalibrationSet:
    digests = {id(row): digest(row) for row in rows}
    # Longest first: memory peaks in the first batch, if it has to. Ties by content, so that the
    # order of the source leaves no trace.
    ordered = sorted(rows, key=lambda row: (-row_length(row), digests[id(row)]))
    return CalibrationSet(
        batches=[
            padded(ordered[start : start + batch_size], pad_token_id)
            for start in range(0, len(ordered), batch_size)
        ],
        num_samples=len(ordered),
        num_tokens=sum(int(row[masks_in(row)[0]].sum()) for row in ordered),
        fingerprint=hashlib.sha256("".join(sorted(digests.values())).encode()).hexdigest(),
        batch_size=batch_size,
        pad_token_id=pad_token_id,
    )
