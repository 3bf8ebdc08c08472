"""Probes against models that are really pruned."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import tiny_bert, tiny_llama
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from stat_prune.choosing.correction import fold
from stat_prune.families import find_blocks
from stat_prune.measuring import objectives
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import (
    OBJECTIVES,
    output_distance,
    pooled_distance,
    states_distance,
)
from stat_prune.measuring.sensitivity import probe
from stat_prune.measuring.statistics import statistics_of
from stat_prune.settings.methods import OBJECTIVES as NAMES
from stat_prune.surgery.cut import apply

MODELS = {
    "base": lambda: tiny_bert(num_hidden_layers=3),
    "classes": lambda: tiny_bert(BertForSequenceClassification, num_labels=3),
    "regression": lambda: tiny_bert(BertForSequenceClassification, num_labels=1),
    "tokens": lambda: tiny_bert(BertForTokenClassification, num_labels=5),
    "spans": lambda: tiny_bert(BertForQuestionAnswering),
    "language": lambda: tiny_llama(num_hidden_layers=3),
}


def batches():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (6, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[3:, 6:] = 0
    return [{"input_ids": ids, "attention_mask": mask}]


def half_of_each_block(model):
    blocks = find_blocks(model)
    moments = collect_moments(model, blocks, batches())
    return [
        fold(one, torch.arange(0, one.block.num_units, 2))
        for one in statistics_of(model.base_model, blocks, moments)
    ]


@pytest.mark.parametrize("kind", MODELS)
def test_a_probe_measures_the_model_with_that_block_pruned(kind):
    model = MODELS[kind]()
    folded = half_of_each_block(model)
    measured = probe(model, folded, batches())
    with torch.no_grad():
        dense = model(**batches()[0])
        for one, distance in zip(folded, measured, strict=True):
            pruned = copy.deepcopy(model)
            apply(pruned, [one])
            expected = output_distance(dense, pruned(**batches()[0]), batches()[0]).mean()
            assert distance == pytest.approx(float(expected), rel=1e-3, abs=1e-9)
            assert distance > 0


@pytest.mark.parametrize("kind", ["classes", "language"])
def test_a_probe_leaves_the_model_as_it_was(kind):
    model = MODELS[kind]()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe(model, half_of_each_block(model), batches())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in vars(next(iter(model.base_model.modules())))
    assert not any("forward" in vars(module) for module in model.modules())


def test_padding_does_not_count_in_the_distance():
    model = MODELS["tokens"]()
    batch = batches()[0]
    with torch.no_grad():
        dense = model(**batch)
        changed = copy.deepcopy(dense)
        changed["logits"][3:, 6:] += 100 * torch.arange(5)
    assert float(output_distance(dense, changed, batch).sum()) == pytest.approx(0, abs=1e-6)
    assert len(output_distance(dense, changed, batch)) == int(batch["attention_mask"].sum())


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_divergence_of_large_vocabularies_is_computed_in_pieces(rows, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    dense, pruned = torch.randn(2, 3, 5, 7, generator=generator)
    monkeypatch.setattr(objectives, "PIECE", 7 * rows)
    probabilities = [one.double().softmax(-1) for one in (dense, pruned)]
    expected = stats.entropy(*(one.numpy() for one in probabilities), axis=-1)

    found = objectives.logits_distance({"logits": dense}, {"logits": pruned}, {})

    assert np.allclose(found.numpy(), expected, rtol=1e-12, atol=0)
    with_gradient = {"logits": pruned.requires_grad_()}
    again = objectives.logits_distance({"logits": dense}, with_gradient, {})
    assert torch.equal(again.detach(), found)
    assert again.requires_grad


def test_hidden_states_are_what_the_model_without_its_head_gives():
    model = MODELS["classes"]()
    folded = half_of_each_block(model)
    found = probe(model, folded, batches(), objective=states_distance)
    assert found == probe(model.bert, folded, batches())
    assert found != probe(model, folded, batches())


def test_an_embedding_is_the_mean_of_the_real_tokens():
    model = MODELS["base"]()
    batch = batches()[0]
    folded = half_of_each_block(model)[0]
    (found,) = probe(model, [folded], [batch], objective=pooled_distance)
    cut = copy.deepcopy(model)
    apply(cut, [folded])
    embeddings = []
    for one in (model, cut):
        with torch.no_grad():
            states = one(**batch)[0]
        lengths = batch["attention_mask"].sum(1).tolist()
        embeddings.append(
            torch.stack([row[:length].mean(0) for row, length in zip(states, lengths, strict=True)])
        )
    dense, pruned = embeddings
    expected = ((pruned - dense).square().sum(1) / dense.square().sum(1)).mean()
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_objectives_are_listed_without_torch_too():
    assert tuple(OBJECTIVES) == NAMES


def test_an_objective_of_the_users_own_is_used():
    model = MODELS["base"]()

    def pooled(dense, pruned, batch):
        return (dense[1] - pruned[1]).square().sum(-1)

    folded = half_of_each_block(model)
    measured = probe(model, folded, batches(), objective=pooled)
    assert measured != probe(model, folded, batches())
    assert all(distance > 0 for distance in measured)
