"""Head statistics are those of a dense float64 computation, one sequence at a time."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

import stat_prune
from stat_prune import Parameters
from stat_prune.attention import TokenClasses, attention_maps, head_statistics
from stat_prune.errors import DataError, ModelError, SettingsError

THRESHOLD = 0.05
WINDOW = 4


def tiny_mistral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=48,
            initializer_range=0.3,
            sliding_window=WINDOW,
        )
    ).eval()


def tiny_distilbert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=64, dim=32, n_heads=4, n_layers=2, hidden_dim=48, initializer_range=0.3
    )
    return DistilBertModel(config).eval()


MODELS = {
    "bidirectional": tiny_bert,
    "another bidirectional": tiny_distilbert,
    "causal, grouped queries": tiny_llama,
    "sliding window, one key/value head": tiny_mistral,
}


@pytest.fixture(scope="module")
def texts(word_tokenizer) -> list[str]:
    """Word salads of 1 to 14 words, so that all batches are padded."""
    words = sorted(word for word in word_tokenizer.get_vocab() if not word.startswith("["))
    source = random.Random(1)
    return [" ".join(source.choices(words, k=source.randint(1, 14))) for _ in range(21)]


def dense_statistics(model: PreTrainedModel, tokenizer, texts: list[str]) -> list[dict]:
    """A dict a layer of arrays of shape (heads,): loops over sequences, heads and queries."""
    reference = copy.deepcopy(model).double()
    reference.set_attn_implementation("eager")
    causal = "Llama" in type(model).__name__ or "Mistral" in type(model).__name__
    window = WINDOW if "Mistral" in type(model).__name__ else 10**6
    collected: dict[tuple[int, int, str], list[float]] = {}
    for text in texts:
        encoded = tokenizer(text, return_tensors="pt")
        tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
        special = [token.startswith("[") and token != "[UNK]" for token in tokens]
        content = [
            not s and t not in "the a on under over and then it was very".split()
            for s, t in zip(special, tokens, strict=True)
        ]
        with torch.no_grad():
            attentions = reference(
                input_ids=encoded["input_ids"], output_attentions=True
            ).attentions
        for layer, maps in enumerate(attentions):
            for head, rows in enumerate(maps[0].double().numpy()):
                for i, row in enumerate(rows):
                    seen = [j for j in range(len(row)) if not causal or (j <= i and i - j < window)]
                    query = _query_statistics(row, i, seen, special, content)
                    for name, value in query.items():
                        collected.setdefault((layer, head, name), []).append(value)
    result: list[dict] = [{} for _ in attentions]
    for (layer, _head, name), values in collected.items():
        result[layer].setdefault(name, []).append(np.mean(values))
    return result


def _query_statistics(row, i, seen, special, content) -> dict[str, float]:
    weights = sorted(float(row[j]) for j in seen)
    entropy = -sum(a * math.log(a) for a in weights if a > 0)
    pairs = sum(abs(a - b) for a in weights for b in weights)
    found = {
        "entropy": entropy,
        "sparsity": sum(a < THRESHOLD for a in weights) / len(weights),
        # The definition of the Gini coefficient: half the relative mean difference of pairs.
        "gini": pairs / (2 * len(weights) * sum(weights)),
        "distance": sum(float(row[j]) * abs(i - j) for j in seen),
        "to_current": float(row[i]),
        "to_neighbors": sum(float(row[j]) for j in seen if abs(i - j) == 1),
        "to_special": sum(float(row[j]) for j in seen if special[j]),
        "to_content": sum(float(row[j]) for j in seen if content[j]),
    }
    if len(seen) > 1:
        found["normalized_entropy"] = entropy / math.log(len(seen))
    if not special[i]:
        found["confidence"] = max(float(row[j]) for j in seen if not special[j])
    return found


@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_those_of_a_dense_float64_computation(name, word_tokenizer, texts):
    model = MODELS[name]()
    expected = dense_statistics(model, word_tokenizer, texts)
    for batch_size in (1, 8):
        found = head_statistics(
            model,
            texts,
            tokenizer=word_tokenizer,
            batch_size=batch_size,
            threshold=THRESHOLD,
            progress=False,
        )
        assert found.num_sequences == len(texts)
        for statistic in found.names:
            table = np.array([layer[statistic] for layer in expected])
            assert found.table(statistic).shape == table.shape == (2, 4)
            np.testing.assert_allclose(found.table(statistic), table, rtol=0, atol=1e-6)


def test_a_probe_leaves_the_model_as_it_was(word_tokenizer, texts):
    model = tiny_llama()
    model.train()
    own = model.config._attn_implementation
    assert own != "eager"
    head_statistics(model, texts, tokenizer=word_tokenizer, progress=False)
    assert model.config._attn_implementation == own and model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_memory_holds_one_batch_whatever_the_number_of_examples(word_tokenizer, texts):
    few = head_statistics(tiny_bert(), texts, tokenizer=word_tokenizer, progress=False)
    many = head_statistics(
        tiny_bert(),
        texts * 10,
        tokenizer=word_tokenizer,
        progress=False,
    )
    assert many.num_sequences == 10 * few.num_sequences
    for statistic in few.names:  # the same data ten times over has the same means
        np.testing.assert_allclose(few.table(statistic), many.table(statistic), atol=1e-6)
    assert all(value.shape == (4,) for values in many.values.values() for value in values.values())


def test_pruned_models_have_statistics_of_the_heads_they_have(word_tokenizer, texts):
    result = stat_prune.prune(
        tiny_bert(),
        texts,
        tokenizer=word_tokenizer,
        target=Parameters({"heads": 0.5}),
        progress=False,
    )
    found = head_statistics(result.model, texts, tokenizer=word_tokenizer, progress=False)
    kept = [len(units) for name, units in result.plan.items() if name.endswith("heads")]
    assert [len(values["entropy"]) for values in found.values.values()] == kept
    assert len(found.rows()) == sum(kept)
    assert np.isnan(found.table("entropy")).sum() == len(kept) * max(kept) - sum(kept)


def test_token_ids_without_tokenizer_have_all_statistics_but_those_of_kinds(texts, word_tokenizer):
    rows = [word_tokenizer(text, return_tensors="pt") for text in texts]
    found = head_statistics(tiny_bert(), rows, progress=False)
    assert "entropy" in found.names
    with pytest.raises(DataError, match="to_special.*tokenizer"):
        found.table("to_special")


def test_attention_that_returns_no_weights_is_refused(texts, word_tokenizer):
    model = tiny_bert()
    attention = model.encoder.layer[1].attention.self
    own = attention.forward
    attention.forward = lambda *args, **kwargs: (own(*args, **kwargs)[0], None)
    with pytest.raises(ModelError, match="encoder.layer.1.heads.*returns no weights"):
        head_statistics(model, texts, tokenizer=word_tokenizer, progress=False)


def test_a_threshold_that_is_no_share_is_refused(texts, word_tokenizer):
    with pytest.raises(SettingsError, match="between 0 and 1, got 2"):
        head_statistics(tiny_bert(), texts, tokenizer=word_tokenizer, threshold=2, progress=False)


def test_maps_of_a_text_are_rows_of_weights(word_tokenizer):
    tokens, maps = attention_maps(tiny_llama(), word_tokenizer, "the cat sat")
    assert tokens == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    assert list(maps) == ["layers.0.heads", "layers.1.heads"]
    for weights in maps.values():
        assert weights.shape == (4, 5, 5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 5, dtype=torch.float64))
        assert not weights.triu(1).any()


def test_words_of_several_tokens_are_judged_as_one():
    class WordPieces:
        """What TokenClasses asks of a tokenizer."""

        tokens = ["[CLS]", "the", "##ory", "of", "every", "##thing", ".", "[SEP]", "[UNK]"]
        all_special_ids = [0, 7, 8]
        cls_token_id, sep_token_id, unk_token_id = 0, 7, 8

        def get_vocab(self):
            return {token: number for number, token in enumerate(self.tokens)}

        def convert_ids_to_tokens(self, ids):
            return [self.tokens[number] for number in ids]

    classes = TokenClasses(WordPieces())
    ids = torch.arange(9)
    # "theory" says something though "the" does not; "everything" is a stop word.
    expected = [False, True, True, False, False, False, False, False, True]
    assert classes.content(ids).tolist() == expected
    assert classes.special(ids).nonzero().flatten().tolist() == [0, 7]


def test_words_end_at_the_blanks_of_the_vocabulary():
    class BytePairs:
        tokens = ["Ġthe", "Ġth", "esis", ",", "is", "ĠisĠold", "<s>", "Ċ"]
        all_special_ids = [6]
        bos_token_id, unk_token_id = 6, None

        def get_vocab(self):
            return dict.fromkeys(self.tokens)

        def convert_ids_to_tokens(self, ids):
            return [self.tokens[number] for number in ids]

    classes = TokenClasses(BytePairs())
    ids = torch.tensor([6, 0, 1, 2, 3, 4, 7, 5])
    # "<s> the thesis,is\n is old": the last token is two words, of which one says something.
    expected = [False, False, True, True, False, False, False, True]
    assert classes.content(ids).tolist() == expected
