"""A model that is being pruned is not pruned by another thread at the same time."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from hand_pruned import assert_same_model
from tiny_models import tiny_bert
from transformers import BertForSequenceClassification

import stat_prune
from stat_prune import MACs
from stat_prune.errors import ModelError

ROWS = [{"input_ids": torch.randint(4, 40, (12,))} for _ in range(40)]


def prune(model: Any, **options: Any) -> Any:
    return stat_prune.prune(model, ROWS, target=MACs(0.6), progress=False, **options)


@pytest.mark.parametrize("part", [False, True], ids=["the model", "a part of it"])
def test_a_second_run_of_a_model_is_one_error_and_the_first_goes_on_to_the_same_result(part):
    model = tiny_bert(BertForSequenceClassification)
    before, expected = copy.deepcopy(model), prune(copy.deepcopy(model))
    midway, seen, found = threading.Event(), threading.Event(), []

    def wait(*_args: Any) -> None:
        midway.set()
        assert seen.wait(timeout=120)

    handle = model.bert.encoder.register_forward_hook(wait)
    thread = threading.Thread(target=lambda: found.append(prune(model)), name="first")
    thread.start()
    assert midway.wait(timeout=120)
    try:
        with pytest.raises(ModelError, match="being pruned already, by thread 'first'"):
            prune(model.bert if part else model)
    finally:
        seen.set()
        thread.join()
    handle.remove()
    assert_same_model(found[0].model, expected.model)
    assert_same_model(model, before)


def test_after_a_run_that_failed_the_model_can_be_pruned():
    model = tiny_bert()
    for _ in range(2):
        with pytest.raises(stat_prune.StatPruneError):
            stat_prune.prune(model, ROWS, target=MACs(0.0001), progress=False)
    prune(model)
    prune(model, inplace=True)
    prune(model)


def test_models_of_their_own_are_pruned_in_threads_side_by_side():
    models, found = [tiny_bert(), tiny_bert()], {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: prune(models[n])})) for n in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_model(found[0].model, found[1].model)
