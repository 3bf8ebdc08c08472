"""Distance of a model's output from that of the model it was made from."""

from __future__ import annotations

import pytest
import torch
from hand_pruned import pruned
from tiny_models import tiny_llama

from stat_prune.evaluation import divergence

TEXTS = ["the cat sat on the tree and ran", "a dog ran under the tree and then over it", "the bird"]


def test_it_is_the_mean_divergence_of_all_tokens(word_tokenizer):
    dense, other = tiny_llama().eval(), tiny_llama(initializer_range=0.05).eval()
    found = divergence(dense, other, word_tokenizer, TEXTS, batch_size=2)

    values = []
    for text in TEXTS:
        ids = torch.tensor([word_tokenizer(text)["input_ids"]])
        with torch.no_grad():
            p, q = (one(ids).logits[0].double().log_softmax(-1) for one in (dense, other))
        values.append((p.exp() * (p - q)).sum(-1))
    tokens = torch.cat(values)
    assert found["divergence"] == pytest.approx(float(tokens.mean()), rel=1e-5)
    assert (found["num_examples"], found["num_tokens"]) == (3, len(tokens))


def test_a_model_is_at_no_distance_from_itself(word_tokenizer):
    model = pruned("BertModel")
    assert divergence(model, model, word_tokenizer, TEXTS)["divergence"] == 0
