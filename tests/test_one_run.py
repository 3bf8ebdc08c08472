"""A model can be used, and pruned, in other threads while it is pruned."""

from __future__ import annotations

import copy
import threading
from contextlib import contextmanager
from typing import Any

import accelerate
import pytest
import torch
from hand_pruned import assert_same_model
from tiny_models import tiny_bert, tiny_llama
from transformers import BertForSequenceClassification

import stat_prune
from stat_prune import MACs
from stat_prune.errors import ModelError
from stat_prune.model.dispatched import same_weights
from stat_prune.pipeline.run import start_run
from stat_prune.settings.settings import Settings

ROWS = [{"input_ids": torch.randint(4, 40, (12,))} for _ in range(40)]
INPUTS = {"input_ids": ROWS[0]["input_ids"][None]}


def prune(model: Any, **options: Any) -> Any:
    return stat_prune.prune(
        model, ROWS, **{"target": MACs(0.6), "effort": "fast", "progress": False} | options
    )


@contextmanager
def serving(model: Any):
    """Another thread asks the model all the time, and notes whether answer and mode ever change."""
    ids, stop, found = ROWS[0]["input_ids"][None], threading.Event(), []

    def ask() -> None:
        with torch.no_grad():
            first = model(input_ids=ids)[0]
            while not stop.is_set():
                same = torch.equal(model(input_ids=ids)[0], first) and not model.training
                found.append(same and not model.config.to_dict().get("stat_prune"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"passes": 2},
        {"method": "kprune"},
        {"method": "attention-entropy", "target": MACs({"heads": 0.5})},
    ],
    ids=["probes and search", "second pass", "kprune", "attention"],
)
def test_a_model_that_is_served_meanwhile_answers_to_the_bit_as_before(options):
    model = tiny_bert(BertForSequenceClassification).eval()
    with serving(model) as answers:
        prune(model, **options)
    assert len(answers) > 3
    assert all(answers)


def test_a_decoder_that_is_served_while_it_is_finetuned_answers_as_before():
    from stat_prune.vib import VIBConfig, vib_finetune

    model = tiny_llama().eval()
    few = VIBConfig(mask_steps=2, finetune_steps=2, batch_size=8)
    with serving(model) as answers:
        vib_finetune(model, ROWS, target=MACs(0.6), teacher=model, mode=few, progress=False)
    assert len(answers) > 3
    assert all(answers)


def places(model: torch.nn.Module) -> list[int]:
    return [one.data_ptr() for one in (*model.parameters(), *model.buffers())]


def test_a_run_takes_no_second_memory_for_the_weights():
    model = tiny_llama()
    with start_run(model, ROWS, None, Settings(progress=False)) as run:
        assert run.model is not model
        assert places(run.model) == places(model)


def test_what_becomes_of_the_copy_does_not_become_of_the_model():
    model = tiny_bert(BertForSequenceClassification)
    before, called = copy.deepcopy(model), []
    copied = same_weights(model)
    copied.register_forward_hook(lambda *_: called.append(1))
    copied.to(torch.float16).eval().requires_grad_(False)
    copied.config.num_labels = 7
    copied.bert.encoder.layer[0].output.dense = torch.nn.Identity()
    assert_same_model(model, before)
    assert model.training == before.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    assert model.config.to_dict() == before.config.to_dict()
    model(input_ids=ROWS[0]["input_ids"][None])
    assert not called


def test_two_threads_that_prune_one_model_get_what_each_would_alone():
    model, found = tiny_bert(), {}
    before, expected = copy.deepcopy(model), prune(copy.deepcopy(model))
    threads = [threading.Thread(target=lambda n=n: found.update({n: prune(model)})) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert_same_model(found[number].model, expected.model)
    assert_same_model(model, before)


@pytest.mark.parametrize("part", [False, True], ids=["the model", "a part of it"])
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_a_run_beside_one_in_place_is_one_error_and_the_first_goes_on(part, inplace):
    model = tiny_bert(BertForSequenceClassification)
    expected = prune(copy.deepcopy(model))
    midway, seen, found = threading.Event(), threading.Event(), []

    def wait(*_args: Any) -> None:
        midway.set()
        assert seen.wait(timeout=120)

    handle = model.bert.encoder.register_forward_hook(wait)
    thread = threading.Thread(target=lambda: found.append(prune(model, inplace=True)), name="first")
    thread.start()
    assert midway.wait(timeout=120)
    try:
        with pytest.raises(ModelError, match="being pruned already, by thread 'first'"):
            prune(model.bert if part else model, inplace=inplace)
    finally:
        seen.set()
        thread.join()
    handle.remove()
    assert_same_model(found[0].model, expected.model)


def test_a_model_of_accelerate_is_pruned_by_one_run_at_a_time():
    model = accelerate.cpu_offload(tiny_bert())
    failed = []

    def once(*_args: Any) -> None:
        if not failed:
            failed.append(pytest.raises(ModelError, prune, model))

    handle = model.encoder.register_forward_hook(once)
    prune(model)
    handle.remove()
    assert "being pruned already" in str(failed[0].value)


@pytest.mark.parametrize("where", ["in place", "accelerate"])
def test_a_thread_that_uses_what_is_cut_itself_is_refused_and_the_run_goes_on(where):
    model = tiny_bert(BertForSequenceClassification)
    expected = prune(copy.deepcopy(model))
    options = {"inplace": True} if where == "in place" else {}
    if where == "accelerate":
        model = accelerate.cpu_offload(model)
    answers: list[Any] = []

    def serve(*_args: Any) -> None:
        if not answers:
            answers.append(None)
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()

    def ask() -> None:
        try:
            model(input_ids=ROWS[0]["input_ids"][None])
        except ModelError as error:
            answers.append(str(error))

    handle = model.bert.encoder.register_forward_hook(serve)
    result = prune(model, **options)
    handle.remove()
    assert "is being pruned by thread 'MainThread'" in answers[1]
    assert result.plan == expected.plan
    # Afterwards both can be used anywhere again.
    answers.append(None)
    thread = threading.Thread(target=lambda: answers.append(result.model(**INPUTS).logits))
    thread.start()
    thread.join()
    assert torch.isfinite(answers[-1]).all()


def test_after_a_run_that_failed_the_model_can_be_pruned():
    model = tiny_bert()
    for inplace in (False, True):
        with pytest.raises(stat_prune.StatPruneError):
            prune(model, target=MACs(0.0001), inplace=inplace)
    prune(model, inplace=True)
    prune(model)


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_what_cannot_be_copied_is_one_error_before_any_work(inplace):
    model = tiny_bert()
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"cannot be copied.*lock.*Take off"):
        stat_prune.prune(model, None, target=MACs(0.6), inplace=inplace)
