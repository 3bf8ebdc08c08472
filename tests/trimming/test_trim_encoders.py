"""Models of sentence-transformers are trimmed whole: pooling and all that is behind stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import stat_prune
from stat_prune import Parameters, trim_vocabulary
from stat_prune.errors import ModelError, SettingsError

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="needs sentence-transformers (the extra `export`)"
)

KEPT = ["the cat sat on the mat", "then it ran", "a cat ran on the mat"] * 4
PAIRS = [("the cat", "it ran"), ("a cat sat", "the mat")]


def transformer(model: PreTrainedModel, tokenizer: Any, folder: Path, **options: Any) -> Any:
    """The first module of a model of sentence-transformers."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sentence_transformers.base.modules.Transformer(str(folder), **options)


@pytest.fixture
def whole(word_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Any:
    modules = pytest.importorskip("sentence_transformers.models")
    first = transformer(tiny_bert(), word_tokenizer, tmp_path / "dense", max_seq_length=11)
    torch.manual_seed(0)
    return sentence_transformers.SentenceTransformer(
        modules=[first, modules.Pooling(32, "max"), modules.Dense(32, 7), modules.Normalize()],
        device="cpu",
        prompts={"query": "very very", "document": ""},
    )


def trimmed(whole: Any, texts: Any = KEPT, tokenizer: Any = None, **options: Any) -> Any:
    return trim_vocabulary(whole, tokenizer, texts, progress=False, **options)


def opened(found: Any, folder: Path) -> Any:
    """What its class makes of the folder that it was saved in."""
    found.save(folder)
    flag = {"trust_remote_code": True} if (folder / "modeling_stat_prune.py").exists() else {}
    return type(found.model)(str(folder), device="cpu", **flag)


@pytest.mark.parametrize("factored", [False, True])
def test_a_sentence_encoder_is_trimmed_with_its_tokenizer_and_keeps_its_modules(
    whole: Any, factored: bool, tmp_path: Path
) -> None:
    if factored:
        whole = stat_prune.prune(
            whole, KEPT, target=Parameters({"embeddings": 0.6}), effort="fast", progress=False
        ).model
    before = whole.encode(KEPT, convert_to_tensor=True)
    asked = whole.encode(KEPT, prompt_name="query", convert_to_tensor=True)
    tokens = whole.tokenizer.get_vocab()
    found = trimmed(whole)
    assert found.model.tokenizer is found.tokenizer
    assert {"cat", "very"} <= found.tokenizer.get_vocab().keys() < tokens.keys()
    assert found.report.vocabulary == len(found.tokenizer) < found.report.vocabulary_before
    assert whole.tokenizer.get_vocab() == tokens
    again = opened(found, tmp_path / "out")
    for one in (whole, found.model, again):
        assert [type(module) for module in one] == [type(module) for module in whole]
        assert one.max_seq_length == 11
        assert torch.equal(one.encode(KEPT, convert_to_tensor=True), before)
        encoded = one.encode(KEPT, prompt_name="query", convert_to_tensor=True)
        assert torch.equal(encoded, asked)
    assert again.tokenizer.get_vocab() == found.tokenizer.get_vocab()
    assert "SentenceTransformer(" in (tmp_path / "out" / "README.md").read_text()


def test_what_it_reads_with_is_its_own_tokenizer(
    whole: Any, word_tokenizer: PreTrainedTokenizerFast
) -> None:
    own = trimmed(whole).kept
    assert trimmed(whole, tokenizer=whole.tokenizer).kept == own
    assert trimmed(whole, tokenizer=word_tokenizer, keep="dog").kept != own
    other = copy.deepcopy(word_tokenizer)
    other.add_tokens(["bird2"])
    with pytest.raises(SettingsError, match="Pass None"):
        trimmed(whole, tokenizer=other)


def test_a_reranker_is_trimmed_whole(
    word_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    transformer(
        tiny_bert(BertForSequenceClassification, num_labels=1), word_tokenizer, tmp_path / "dense"
    )
    reranker = sentence_transformers.CrossEncoder(str(tmp_path / "dense"), device="cpu")
    found = trimmed(reranker, PAIRS * 6)
    expected = reranker.predict(PAIRS)
    assert (found.model.predict(PAIRS) == expected).all()
    assert (opened(found, tmp_path / "out").predict(PAIRS) == expected).all()


def test_the_tokens_that_a_reranker_asks_a_language_model_for_follow(
    word_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Its module behind knows their ids."""
    scoring = pytest.importorskip("sentence_transformers.cross_encoder.modules")
    tokenizer = word_tokenizer
    tokenizer.padding_side = "left"
    first = transformer(
        tiny_llama(), tokenizer, tmp_path / "dense", transformer_task="text-generation"
    )
    yes, no = tokenizer.convert_tokens_to_ids(["very", "under"])
    modules = [first, scoring.LogitScore(yes, no)]
    reranker = sentence_transformers.CrossEncoder(modules=modules, device="cpu")
    found = trimmed(reranker, PAIRS * 6)
    score, new = found.model[1], found.tokenizer.convert_tokens_to_ids(["very", "under"])
    assert [score.true_token_id, score.false_token_id] == new != [yes, no]
    expected = torch.tensor(reranker.predict(PAIRS))
    for one in (found.model, opened(found, tmp_path / "out")):
        torch.testing.assert_close(torch.tensor(one.predict(PAIRS)), expected)


def test_embeddings_of_a_number_a_token_are_those_of_the_tokens_that_stay(
    word_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    first = transformer(
        tiny_bert(BertForMaskedLM), word_tokenizer, tmp_path / "d", transformer_task="fill-mask"
    )
    encoder = sentence_transformers.SparseEncoder(
        modules=[first, modules.SpladePooling(pooling_strategy="sum")], device="cpu"
    )
    before = encoder.encode(KEPT, convert_to_sparse_tensor=False)[:, : len(word_tokenizer)]
    found = trimmed(encoder)
    for one in (found.model, opened(found, tmp_path / "out")):
        embedded = one.encode(KEPT, convert_to_sparse_tensor=False)
        torch.testing.assert_close(embedded, before[:, found.kept])
        assert one.get_embedding_dimension() == len(found.kept)


def test_parts_that_read_with_tokenizers_of_their_own_are_refused(
    word_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    router = pytest.importorskip("sentence_transformers.base.modules").Router
    first = transformer(
        tiny_bert(BertForMaskedLM), word_tokenizer, tmp_path / "d", transformer_task="fill-mask"
    )
    parts = router.for_query_document(
        query_modules=[modules.SparseStaticEmbedding(tokenizer=word_tokenizer)],
        document_modules=[first, modules.SpladePooling()],
    )
    encoder = sentence_transformers.SparseEncoder(modules=[parts], device="cpu")
    with pytest.raises(ModelError, match=r"tokenizer of their own.*Transformer"):
        trimmed(encoder)
