"""From single examples to rows of model inputs, without padding and with their labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from stat_prune.errors import DataError
from stat_prune.examples import Label, LabelledExample
from stat_prune.input_rows import TOKENS_OF, TokenRow


def without_padding(row: TokenRow, limit: int | None) -> TokenRow | None:
    """Cut to the span of real tokens and to `limit`; None where there is no token at all."""
    cut = dict(row)
    for mask, names in TOKENS_OF.items():
        if mask not in row:
            continue
        real = row[mask].nonzero()
        if not len(real):
            return None
        start, stop = int(real[0]), int(real[-1]) + 1
        if limit is not None:
            stop = min(stop, start + limit)
        cut |= {name: row[name][start:stop] for name in names if name in row}
    return cut


def without_targets(row: TokenRow) -> TokenRow:
    """The row without what a decoder is to write, for models that have none."""
    return {name: value for name, value in row.items() if name != "target_ids"}


def labelled(row: TokenRow, label: Label | None) -> TokenRow:
    """The row with its label, of no dimension, beside the model inputs; without one as it is."""
    return row if label is None else {**row, "labels": torch.tensor(label)}


def tokenized(
    texts: Sequence[LabelledExample], tokenizer: PreTrainedTokenizerBase | None, limit: int
) -> list[TokenRow]:
    """The texts as rows: single texts first, then pairs, those without any token left out.

    Raises
    ------
    DataError
        If there are texts and no tokenizer.
    """
    if not texts:
        return []
    if tokenizer is None:
        raise DataError(
            "The calibration dataset holds texts but there is no tokenizer. "
            "Pass tokenizer=AutoTokenizer.from_pretrained(...), the one of the model."
        )
    rows: list[TokenRow] = []
    for kind in (str, tuple):
        chosen = [(text, label) for text, label in texts if isinstance(text, kind)]
        if not chosen:
            continue
        first = [text if isinstance(text, str) else text[0] for text, _ in chosen]
        second = [text[1] for text, _ in chosen] if kind is tuple else None
        encoded = tokenizer(
            first, second, truncation=True, max_length=limit, return_attention_mask=True
        )
        for (_, label), *values in zip(chosen, *encoded.values(), strict=True):
            row = {
                name: torch.tensor(value, dtype=torch.int64)
                for name, value in zip(encoded, values, strict=True)
            }
            rows += [labelled(row, label)] if int(row["attention_mask"].sum()) else []
    return rows
