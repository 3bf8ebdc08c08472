from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from stat_prune.errors import DataError
from stat_prune.evaluation import perplexity

TEXTS = [
    "the cat sat on the mat",
    "a dog ran",
    "the bird flew over the house and then under a tree and it was a very very old cat",
]


@pytest.fixture(scope="module")
def decoder() -> LlamaForCausalLM:
    return tiny_llama(max_position_embeddings=64)


def nll_by_hand(model: LlamaForCausalLM, pieces: list[list[int]]) -> tuple[float, int]:
    """Sum of -log p(token | the piece before it), one piece at a time, and the count."""
    total, count = 0.0, 0
    for piece in pieces:
        with torch.no_grad():
            log_p = model(torch.tensor([piece])).logits[0].double().log_softmax(-1)
        for position, token in enumerate(piece[1:]):
            total -= float(log_p[position, token])
            count += 1
    return total, count


def test_documents_are_weighted_by_token_and_cut_at_the_context_length(decoder, word_tokenizer):
    ids = [word_tokenizer(text)["input_ids"] for text in TEXTS]
    pieces = [row[start : start + 8] for row in ids for start in range(0, len(row), 8)]
    total, count = nll_by_hand(decoder, [piece for piece in pieces if len(piece) > 1])

    result = perplexity(decoder, word_tokenizer, TEXTS, context_length=8, batch_size=2)

    assert result["num_tokens"] == count
    assert result["nll"] == pytest.approx(total / count, abs=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    assert (result["context_length"], result["mode"]) == (8, "documents")


def test_blocks_are_full_and_run_over_document_ends(decoder, word_tokenizer):
    ids = word_tokenizer("\n\n".join(TEXTS))["input_ids"]
    blocks = [ids[start : start + 7] for start in range(0, len(ids) - 6, 7)]
    total, count = nll_by_hand(decoder, blocks)

    result = perplexity(decoder, word_tokenizer, TEXTS, context_length=7, mode="blocks")

    assert len(ids) % 7 != 0
    assert result["num_tokens"] == count == 6 * len(blocks)
    assert result["nll"] == pytest.approx(total / count, abs=1e-6)


def test_the_context_length_defaults_to_what_the_model_admits(decoder, word_tokenizer):
    assert perplexity(decoder, word_tokenizer, TEXTS)["context_length"] == 64


@pytest.mark.parametrize(
    ("texts", "settings"), [([], {}), (TEXTS, {"context_length": 1}), (TEXTS, {"mode": "blocks"})]
)
def test_nothing_to_predict_is_an_error(texts, settings, decoder, word_tokenizer):
    with pytest.raises(DataError, match="no token to predict"):
        perplexity(decoder, word_tokenizer, texts, **settings)


@pytest.mark.realdata
@pytest.mark.slow
def test_the_stories_model_has_its_known_perplexity(real_data):
    folder = real_data / "models" / "llama-tinystories-656k"
    stories = json.loads((real_data / "data" / "tinystories" / "stories_1000.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    result = perplexity(model, AutoTokenizer.from_pretrained(folder), stories[:200])

    assert result["perplexity"] == pytest.approx(25, abs=0.5)
