"""Distances from the teacher, against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from tiny_models import tiny_bert, tiny_llama
from transformers import BertForMaskedLM
from transformers.modeling_outputs import SequenceClassifierOutput
from vib_runs import classifier

from stat_prune import StatPruneError
from stat_prune.measuring.distillation import (
    check_teacher,
    hidden_distance,
    layer_map_of,
    logit_distance,
    run_on,
)

BATCH = {
    "input_ids": torch.tensor([[2, 9, 30, 3], [2, 41, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


def test_logits_are_compared_by_the_tempered_divergence_times_the_squared_temperature():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 2, 3, generator=generator)
    p, q = (log_softmax(one.double().numpy() / 2, axis=1) for one in (theirs, ours))
    expected = 4 * (np.exp(p) * (p - q)).sum(1).mean()
    student, teacher = (SequenceClassifierOutput(logits=one) for one in (ours, theirs))
    assert float(logit_distance(student, teacher, BATCH, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_padding_has_no_part_in_what_is_compared():
    student, teacher = tiny_bert(), tiny_bert(intermediate_size=40)
    short = {name: value[1:, :3] for name, value in BATCH.items()}
    padded = {name: value[1:] for name, value in BATCH.items()}
    found = [
        hidden_distance(
            *(run_on(one, batch)[1] for one in (student, teacher)),
            batch,
            ((0, 0), (1, 1)),
        )
        for batch in (short, padded)
    ]
    assert found[0].detach() > 0.01
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_hidden_states_are_compared_relative_to_the_teachers_norm():
    student, teacher = tiny_bert(), tiny_bert(num_hidden_layers=4)
    ours, theirs = (
        one(**BATCH, output_hidden_states=True).hidden_states for one in (student, teacher)
    )
    layers = layer_map_of(student, teacher, None)
    assert layers == ((0, 1), (1, 3))
    real = BATCH["attention_mask"].bool()
    parts = []
    for mine, other in layers:
        a, b = ours[mine + 1][real], theirs[other + 1][real]
        parts.append(float(((a - b).norm() ** 2 / b.norm() ** 2).detach()))
    found = hidden_distance(ours[1:], theirs[1:], BATCH, layers)
    own = hidden_distance(*(run_on(m, BATCH)[1] for m in (student, teacher)), BATCH, layers)
    assert torch.equal(own, found)
    assert float(found.detach()) == pytest.approx(sum(parts) / 2, rel=1e-4)


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_a_model_is_at_no_distance_from_itself(make):
    model = make()
    output, states = run_on(model, BATCH)
    assert float(hidden_distance(states, states, BATCH, ((0, 0), (1, 1)))) == 0
    logits = logit_distance(output, output, BATCH, 2.0)
    assert logits is None if make is tiny_bert else float(logits) == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_cannot_be_compared_is_refused():
    model = classifier()
    for teacher, reason in (
        (classifier(vocab_size=80), "vocabulary of 80"),
        (classifier(num_labels=3), "3 classes"),
        (tiny_bert(BertForMaskedLM), "same head"),
    ):
        with pytest.raises(StatPruneError, match=reason):
            check_teacher(model, teacher)
    check_teacher(model, classifier(intermediate_size=40))


def test_layers_and_sizes_that_do_not_fit_are_refused():
    model = classifier()
    with pytest.raises(StatPruneError, match=r"pair \(0, 2\)"):
        layer_map_of(model, model, ((0, 2),))
    with pytest.raises(StatPruneError, match="16 dimensions"):
        layer_map_of(model, tiny_bert(hidden_size=16), None)


def test_only_the_dimensions_that_count_are_compared():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 1, 2, 4, 6, generator=generator)
    counts = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 0.0])
    kept, real = counts > 0, BATCH["attention_mask"].bool()
    error = ((ours - theirs)[0][real] ** 2 @ counts).sum() / (theirs[0][real] ** 2 @ counts).sum()
    found = hidden_distance(ours, theirs, BATCH, ((0, 0),), counts)
    assert torch.allclose(found, error)
    assert torch.allclose(hidden_distance(ours[..., kept], theirs, BATCH, ((0, 0),), counts), error)
