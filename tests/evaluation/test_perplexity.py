from __future__ import annotations

import copy
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


@pytest.mark.parametrize(("context", "stride"), [(8, 3), (8, 7), (6, 1), (1000, None)])
def test_a_sliding_window_predicts_every_token_but_the_first_once(
    context, stride, decoder, word_tokenizer
):
    """Against one forward pass for each predicted token, in float64."""
    exact = copy.deepcopy(decoder).double()
    ids = word_tokenizer("\n\n".join(TEXTS))["input_ids"]
    step = stride or context // 2
    total = 0.0
    for position in range(1, len(ids)):
        # The first window that reaches the token reads it after all that it holds before it.
        start = max(0, math.ceil((position + 1 - context) / step) * step)
        with torch.no_grad():
            logits = exact(torch.tensor([ids[start:position]])).logits[0, -1]
        total -= float(logits.log_softmax(-1)[ids[position]])

    result = perplexity(
        exact,
        word_tokenizer,
        TEXTS,
        context_length=context,
        mode="sliding",
        stride=stride,
        batch_size=2,
    )

    assert result["num_tokens"] == len(ids) - 1
    assert result["perplexity"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-6)
    assert (result["mode"], result["stride"]) == ("sliding", step)


def test_float32_models_have_the_perplexity_of_float64_ones(decoder, word_tokenizer):
    exact = copy.deepcopy(decoder).double()
    for mode in ("documents", "blocks", "sliding"):
        settings = {"context_length": 7, "mode": mode}
        found = perplexity(decoder, word_tokenizer, TEXTS, **settings)["perplexity"]
        expected = perplexity(exact, word_tokenizer, TEXTS, **settings)["perplexity"]
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stride", [0, 8])
def test_a_stride_that_leaves_gaps_is_refused(stride, decoder, word_tokenizer):
    with pytest.raises(DataError, match="below the context length, 8"):
        perplexity(decoder, word_tokenizer, TEXTS, context_length=8, mode="sliding", stride=stride)


def test_a_limit_keeps_the_first_pieces(decoder, word_tokenizer):
    ids = word_tokenizer("\n\n".join(TEXTS))["input_ids"]
    total, count = nll_by_hand(decoder, [ids[:7], ids[7:14]])

    result = perplexity(decoder, word_tokenizer, TEXTS, context_length=7, mode="blocks", limit=2)

    assert result["num_tokens"] == count
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
