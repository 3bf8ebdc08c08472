"""Outputs that are not finite: equal infinities are no distance, anything else is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_bert
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
)

import stat_prune
from stat_prune.errors import NonFiniteOutputsError
from stat_prune.measuring import objectives
from stat_prune.measuring.objectives import OBJECTIVES, distances, logits_distance, output_distance

IDS = torch.randint(3, 60, (40, 9), generator=torch.Generator().manual_seed(3))
ROWS = [{"input_ids": row} for row in IDS]


def logits(seed, shape=(3, 4, 6)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masked(seed, shape=(3, 4, 6)):
    """Where classes are masked; one of each is not."""
    hidden = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    hidden[..., 0] = False
    return hidden


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), with_gradient=st.booleans(), piece=st.integers(6, 80))
def test_classes_masked_before_and_after_are_those_of_a_smaller_vocabulary(
    seed, with_gradient, piece
):
    dense, pruned, hidden = logits(seed), logits(seed + 1), masked(seed)
    before, after = (one.masked_fill(hidden, -math.inf) for one in (dense, pruned))
    after.requires_grad_(with_gradient)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "PIECE", piece)
        found = logits_distance({"logits": before}, {"logits": after}, {})
        same = logits_distance({"logits": before}, {"logits": before.clone()}, {})
    for index in [(i, j) for i in range(3) for j in range(4)]:
        kept = ~hidden[index]
        p, q = (one[index][kept].double().log_softmax(-1) for one in (dense, pruned))
        assert float(found[index].detach()) == pytest.approx(
            float((p.exp() * (p - q)).sum()), abs=1e-12
        )
    assert same.tolist() == torch.zeros(3, 4).tolist()
    if with_gradient:
        found.sum().backward()
        assert after.grad is not None and torch.isfinite(after.grad).all()
        assert not after.grad[hidden].any()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    where=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 5)),
    whose=st.sampled_from(["dense", "pruned", "both"]),
)
def test_an_entry_that_is_not_finite_on_one_side_is_refused_and_nan_on_any(
    seed, value, where, whose
):
    dense, pruned = logits(seed), logits(seed + 1)
    for name, tensor in (("dense", dense), ("pruned", pruned)):
        if whose in (name, "both"):
            tensor[where] = value
    both = {"logits": dense}, {"logits": pruned}
    if whose == "both" and not math.isnan(value):
        assert torch.isfinite(distances(output_distance, *both, {})).all()
        return
    expected = "pruned" if whose == "pruned" else "dense"
    with pytest.raises(NonFiniteOutputsError, match=f"The {expected} model's logits"):
        distances(output_distance, *both, {})


@pytest.mark.parametrize("objective", ["hidden-states", "pooled"])
def test_hidden_states_that_are_not_finite_are_refused_but_not_those_of_padding(objective):
    states = torch.randn(2, 3, 4)
    states[1, 2] = math.nan
    batch = {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    output = {"last_hidden_state": states}
    if objective == "hidden-states":
        assert torch.isfinite(distances(OBJECTIVES[objective], output, output, batch)).all()
    batch["attention_mask"][1, 2] = 1
    with pytest.raises(NonFiniteOutputsError, match="last_hidden_state.*4 NaN"):
        distances(OBJECTIVES[objective], output, output, batch)


def test_an_objective_that_overflows_on_finite_outputs_says_so():
    def mine(dense, _pruned, _batch):
        return dense["logits"].sum(-1) / 0

    with pytest.raises(NonFiniteOutputsError, match="mine: .* inf"):
        distances(mine, {"logits": torch.ones(2, 3)}, {"logits": torch.ones(2, 3)}, {})


def test_a_model_that_returns_nan_is_refused_and_not_pruned_to_almost_nothing():
    model = tiny_bert(BertForTokenClassification)
    forward = model.classifier.forward
    model.classifier.forward = lambda states: forward(states) * math.nan
    with pytest.raises(NonFiniteOutputsError, match="dense model's logits"):
        stat_prune.prune(model, ROWS, target=stat_prune.MACs(0.6), progress=False)


def test_masked_vocabulary_rows_are_pruned_as_the_others_alone():
    """The plan is that of the same model whose masked rows are merely very unlikely."""
    plans = []
    for value in (-math.inf, -1e4):
        model = tiny_bert(BertForMaskedLM)
        with torch.no_grad():
            model.cls.predictions.bias[50:] = value
        result = stat_prune.prune(model, ROWS, target=stat_prune.MACs(0.6), progress=False)
        assert result.report.after.block_macs / result.report.before.block_macs > 0.55
        plans.append(result.plan)
    assert plans[0] == plans[1]


def test_padding_of_questions_has_no_part_in_float16_too():
    torch.manual_seed(0)
    batch = {"input_ids": IDS[:2], "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    batch["attention_mask"][0, 6:] = 0
    model = tiny_bert(BertForQuestionAnswering)
    with torch.no_grad():
        output = model(**batch)
    half = {name: value.half() for name, value in output.items()}
    changed = {name: value.clone() for name, value in half.items()}
    changed["start_logits"][0, 6:] = 100
    assert distances(output_distance, half, changed, batch).tolist() == [0, 0]
