"""The argument `objective`, from the call to the report."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_bert
from transformers import BertForSequenceClassification

import stat_prune
from stat_prune.errors import SettingsError
from stat_prune.pipeline import loaded_model

IDS = torch.randint(3, 40, (40, 9), generator=torch.Generator().manual_seed(3))
ROWS = [{"input_ids": row} for row in IDS]


def pruned(model, objective, **options):
    return stat_prune.prune(
        model, ROWS, target=stat_prune.MACs(0.5), objective=objective, progress=False, **options
    )


def classifier():
    return tiny_bert(BertForSequenceClassification, initializer_range=0.5)


def test_hidden_states_of_a_classifier_are_preserved_as_those_of_its_encoder():
    model = classifier()
    found = pruned(model, "hidden-states")
    alone = pruned(model.bert, None)
    assert list(found.plan.values()) == list(alone.plan.values())
    assert found.report.settings["objective"] == "hidden-states"
    assert found.report.predicted_distance == alone.report.predicted_distance
    assert found.report.predicted_distance != pruned(model, None).report.predicted_distance


def test_logits_are_the_default_where_there_are_any():
    model = classifier()
    found, default = pruned(model, "logits"), pruned(model, None)
    assert found.plan == default.plan
    assert found.report.predicted_distance == default.report.predicted_distance


def test_the_second_pass_is_judged_by_it():
    model = classifier()
    found, alone, default = (
        pruned(one, objective, passes=2).report.second_pass
        for one, objective in ((model, "pooled"), (model.bert, "pooled"), (model, None))
    )
    assert found["distances"]["first pass"] == alone["distances"]["first pass"]
    assert found["distances"]["first pass"] != default["distances"]["first pass"]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("pooling", "`objective` must be one of logits, hidden-states, pooled.*'pooling'"),
        ("logits", "objective='logits' needs logits, but the model's output has last_hidden_state"),
    ],
)
def test_an_objective_that_is_not_to_be_had_is_refused_before_any_work(
    objective, message, monkeypatch
):
    monkeypatch.setattr(loaded_model, "collect", lambda *_: pytest.fail("it worked"))
    with pytest.raises(SettingsError, match=message):
        pruned(tiny_bert(), objective)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (None, "got NoneType"),
        (0.5, "got float"),
        (torch.tensor([1, 2]), "got torch.int64 of shape"),
        (torch.empty(0), "got an empty one"),
        (-torch.ones(3), "got a mean of -1"),
    ],
    ids=str,
)
def test_a_function_that_returns_no_distances_is_refused_before_any_work(
    returned, got, monkeypatch
):
    monkeypatch.setattr(loaded_model, "collect", lambda *_: pytest.fail("it worked"))
    with pytest.raises(SettingsError, match=f"must return a tensor of distances.*{got}"):
        pruned(tiny_bert(), lambda _dense, _pruned, _batch: returned)
