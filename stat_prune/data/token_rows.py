"""From single examples to rows of model inputs, without padding and with their labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from stat_prune.errors import DataError
from stat_prune.examples.input_rows import TOKENS_OF, TokenRow
from stat_prune.examples.iterating import LabelledExample
from stat_prune.examples.records import Chat, Label, Words

#: Tokens of the longest text; tokenizers take no larger number.
MAX_LENGTH = 2**31 - 1


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
    """The texts as rows, by their kinds; those without any token are left out.

    Raises
    ------
    DataError
        If there are texts and no tokenizer, or one that cannot read a text.
    """
    if not texts:
        return []
    if tokenizer is None:
        raise DataError(
            "The calibration dataset holds texts but there is no tokenizer. "
            "Pass tokenizer=AutoTokenizer.from_pretrained(...), that of the model (--tokenizer on "
            "the command line); or save it in the model's folder."
        )
    rows: list[TokenRow] = []
    for kind, encode in _ENCODERS:
        chosen = [(text, label) for text, label in texts if isinstance(text, kind)]
        if not chosen:
            continue
        encoded = _encoded(encode, [text for text, _ in chosen], tokenizer, min(limit, MAX_LENGTH))
        for (_, label), *values in zip(chosen, *encoded.values(), strict=True):
            row = {
                name: torch.tensor(value, dtype=torch.int64)
                for name, value in zip(encoded, values, strict=True)
            }
            rows += [labelled(row, label)] if int(row["attention_mask"].sum()) else []
    return rows


def _encoded(
    encode: Callable[..., Mapping[str, Any]],
    texts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
) -> Mapping[str, Any]:
    try:
        return encode(texts, tokenizer, truncation=True, max_length=limit)
    except Exception as error:  # of every kind: tokenizers and templates are programs of others
        if len(texts) > 1:  # one by one, to name the one that is at fault
            for text in texts:
                _encoded(encode, [text], tokenizer, limit)
        raise DataError(
            f"The tokenizer cannot read the example {str(texts[0])[:80]!r}: "
            f"{str(error).strip() or type(error).__name__}. {_REMEDIES.get(encode, _REMEDY)}"
        ) from error


def _encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, **cut: Any
) -> Mapping[str, Any]:
    encoded: Mapping[str, Any] = tokenizer(list(texts), return_attention_mask=True, **cut)
    return encoded


def _encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, **cut: Any
) -> Mapping[str, Any]:
    first, second = (list(side) for side in zip(*pairs, strict=True))
    encoded: Mapping[str, Any] = tokenizer(first, second, return_attention_mask=True, **cut)
    return encoded


def _encode_words(
    texts: Sequence[Words], tokenizer: PreTrainedTokenizerBase, **cut: Any
) -> Mapping[str, Any]:
    # Byte pairs have the blank before a word in its first token, if it is there to be read.
    blank = " " if getattr(tokenizer, "add_prefix_space", None) is False else ""
    words = [
        [f"{blank if at else ''}{word}" for at, word in enumerate(text.words)] for text in texts
    ]
    encoded: Mapping[str, Any] = tokenizer(
        words, is_split_into_words=True, return_attention_mask=True, **cut
    )
    return encoded


def _encode_chats(chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase, **cut: Any) -> Any:
    conversations: Any = [list(chat.messages) for chat in chats]
    how = {"return_attention_mask": True}
    return tokenizer.apply_chat_template(
        conversations, return_dict=True, tokenizer_kwargs=how, **cut
    )


_ENCODERS: tuple[tuple[type, Callable[..., Mapping[str, Any]]], ...] = (
    (str, _encode_texts),
    (tuple, _encode_pairs),
    (Words, _encode_words),
    (Chat, _encode_chats),
)

_REMEDY = "Leave it out, or mend it."
_REMEDIES = {
    _encode_chats: "Conversations go through the tokenizer's chat_template: set the one of the "
    "model's chat version, or put each conversation as one string into a column 'text'.",
    _encode_words: "Words already split need a tokenizer that takes them; or join them to one "
    "string in a column 'text'.",
}
