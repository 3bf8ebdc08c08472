"""Attention can be looked at in every family, and heads chosen by it."""

from __future__ import annotations

import numpy as np
import torch
from families import Family

from stat_prune import Parameters
from stat_prune.probing import attention_maps, head_statistics


def test_statistics_do_not_depend_on_padding(family: Family, texts, word_tokenizer):
    model = family.build(family.heads[-1])
    alone, together = (
        head_statistics(
            model, texts, tokenizer=word_tokenizer, batch_size=batch_size, progress=False
        )
        for batch_size in (1, 32)
    )
    for name in alone.names:
        assert np.isfinite(alone.table(name)).all()
        np.testing.assert_allclose(alone.table(name), together.table(name), rtol=0, atol=1e-5)
    assert (alone.table("normalized_entropy") <= 1 + 1e-6).all()


def test_maps_are_those_that_transformers_returns(family: Family, texts, word_tokenizer):
    model = family.build()
    _, maps = attention_maps(model, word_tokenizer, texts[0])
    model.set_attn_implementation("eager")
    batch = word_tokenizer(texts[0], return_tensors="pt")
    with torch.no_grad():
        expected = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_attentions=True,
        ).attentions
    for found, layer in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(found, layer[0].double(), rtol=0, atol=1e-6)


def test_heads_can_be_chosen_by_their_attention(family: Family, prune):
    result = prune(family.build(), Parameters({"heads": 0.5}), method="attention-combined")
    for row in result.report.blocks:
        assert (row.kept < row.total) == (row.kind == "heads")
