"""Accuracy at masked tokens."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_bert
from transformers import BertForMaskedLM

from stat_prune.errors import DataError
from stat_prune.evaluation import masked_accuracy

TEXTS = ["the cat sat on the tree and ran", "a dog ran under the tree and then over it", "the bird"]


@pytest.fixture
def masking_tokenizer(word_tokenizer):
    """The one of words, with a mask."""
    tokenizer = copy.deepcopy(word_tokenizer)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


@pytest.fixture
def model() -> BertForMaskedLM:
    return BertForMaskedLM(tiny_bert().config).eval()


def answering(model, monkeypatch, answer):
    """The model says of each batch what `answer` makes of its token ids."""
    size = model.config.vocab_size

    def forward(input_ids, attention_mask):
        named = answer(input_ids, attention_mask)
        return SimpleNamespace(logits=torch.nn.functional.one_hot(named, size).float())

    monkeypatch.setattr(model, "forward", forward)


def test_a_model_that_always_names_one_token_is_right_where_it_stands(
    model, monkeypatch, masking_tokenizer
):
    answering(model, monkeypatch, lambda ids, _mask: torch.full_like(ids, 7))
    seven = masking_tokenizer.convert_ids_to_tokens(7)
    assert masked_accuracy(model, masking_tokenizer, [f"{seven} {seven} {seven}"]) == 1.0
    eight = masking_tokenizer.convert_ids_to_tokens(8)
    assert masked_accuracy(model, masking_tokenizer, [f"{eight} {eight} {eight}"]) == 0.0


def test_masks_stand_in_the_fraction_asked_for_and_not_in_padding(
    model, monkeypatch, masking_tokenizer
):
    seen = []
    answering(
        model, monkeypatch, lambda ids, mask: (seen.append((ids, mask)), torch.zeros_like(ids))[1]
    )
    masked_accuracy(model, masking_tokenizer, TEXTS, mask_fraction=1.0)
    (ids, mask) = seen[0]
    special = set(masking_tokenizer.all_special_ids)
    for text, row, real in zip(sorted(TEXTS, key=len, reverse=True), ids, mask, strict=True):
        expected = [
            masking_tokenizer.mask_token_id if one not in special else one
            for one in masking_tokenizer(text)["input_ids"]
        ]
        assert row[real.bool()].tolist() == expected


def test_batches_change_nothing(model, masking_tokenizer):
    one, many = (
        masked_accuracy(model, masking_tokenizer, TEXTS * 5, mask_fraction=0.5, batch_size=size)
        for size in (1, 16)
    )
    assert one == many


def test_texts_of_special_tokens_alone_are_refused(model, masking_tokenizer):
    with pytest.raises(DataError, match="No token"):
        masked_accuracy(model, masking_tokenizer, [""])


def test_a_tokenizer_without_a_mask_is_refused(model, word_tokenizer):
    with pytest.raises(DataError, match="has no mask token"):
        masked_accuracy(model, word_tokenizer, TEXTS)
