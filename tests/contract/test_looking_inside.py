"""Attention can be looked at in every family, and heads chosen by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import Family

from stat_prune import Parameters
from stat_prune.attention import attention_maps, head_statistics
from stat_prune.errors import ModelError, TargetError
from stat_prune.families import find_blocks
from stat_prune.model.running import model_inputs


def reads_one_text(family: Family) -> bool:
    blocks = [block for block in find_blocks(family.build()) if block.kind == "heads"]
    one = all(block.mask == block.key_mask == "attention_mask" for block in blocks)
    return one and not family.signals


def skip_unless_one_text(family: Family) -> None:
    if not reads_one_text(family):
        pytest.skip(f"{family.label} reads something else than one text")


@pytest.mark.layouts
def test_statistics_do_not_depend_on_padding(family: Family, texts, word_tokenizer):
    skip_unless_one_text(family)
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
    skip_unless_one_text(family)
    model = family.build()
    _, maps = attention_maps(model, word_tokenizer, texts[0])
    model.config._attn_implementation = "eager"
    batch = word_tokenizer(texts[0], return_tensors="pt")
    with torch.no_grad():
        inputs = model_inputs(model, batch, model.device)
        expected = model(**inputs, output_attentions=True).attentions
    shared = len(expected) // len(maps)  # layers that share their weights: the last is shown
    for found, layer in zip(maps.values(), expected[shared - 1 :: shared], strict=True):
        torch.testing.assert_close(found, layer[0].double(), rtol=0, atol=1e-6)


def test_heads_can_be_chosen_by_their_attention(family: Family, prune, texts):
    skip_unless_one_text(family)
    model = family.build()
    if all(block.fixed for block in find_blocks(model) if block.kind == "heads"):
        pytest.skip(f"the heads of {family.label} all stay")
    result = prune(model, Parameters({"heads": 0.5}), method="attention-combined")
    for row in result.report.blocks:
        assert row.kind == "heads" or row.kept == row.total
    assert any(row.kept < row.total for row in result.report.blocks)


def test_models_of_anything_but_one_text_are_refused(family: Family, prune):
    if reads_one_text(family):
        pytest.skip(f"{family.label} reads one text")
    with pytest.raises((ModelError, TargetError)):
        prune(family.build(), Parameters({"heads": 0.5}), method="attention-entropy")
