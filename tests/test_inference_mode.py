"""What the caller has set does not reach a run: inference mode, autocast, a default device."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from transformers import BertForMaskedLM, BertForSequenceClassification

import stat_prune
from stat_prune.model.tensors.ordinary_tensors import outside_modes_of_caller

ROWS = [{"input_ids": torch.randint(4, 40, (12,))} for _ in range(40)]


def trains(model: torch.nn.Module) -> bool:
    """Whether a step gives every weight a gradient that was asked for."""
    ids = torch.arange(4, 12)[None]
    output = model(input_ids=ids)
    output.logits.sum().backward()
    wanted = [p for p in model.parameters() if p.requires_grad and p.numel()]
    return any(p.grad is not None for p in wanted) and not any(p.is_inference() for p in wanted)


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("made_there", [False, True], ids=["made outside", "made inside"])
@pytest.mark.parametrize("method", ["stat", "magnitude", "fisher"])
def test_what_is_pruned_in_inference_mode_can_be_trained(method, made_there, inplace):
    model = tiny_bert(BertForSequenceClassification)
    with torch.inference_mode():
        if made_there:
            model = tiny_bert(BertForSequenceClassification)
        result = stat_prune.prune(
            model,
            ROWS,
            target=stat_prune.MACs(0.6),
            method=method,
            inplace=inplace,
            progress=False,
        )
    assert trains(result.model)


def test_a_second_pass_works_in_inference_mode():
    with torch.inference_mode():
        result = stat_prune.prune(
            tiny_llama(), ROWS, target=stat_prune.MACs(0.6), passes=2, progress=False
        )
    assert trains(result.model)


def test_tied_weights_that_were_made_in_inference_mode_stay_tied():
    with torch.inference_mode():
        model = tiny_bert(BertForMaskedLM)
        result = stat_prune.prune(model, ROWS, target=stat_prune.MACs(0.6), progress=False)
    for one in (model, result.model):
        assert one.get_output_embeddings().weight is one.get_input_embeddings().weight


MODES = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_that_of_a_run_outside(mode):
    model = tiny_llama()
    outside = stat_prune.prune(model, ROWS, target=stat_prune.MACs(0.6), progress=False)
    with MODES[mode]():
        inside = stat_prune.prune(model, ROWS, target=stat_prune.MACs(0.6), progress=False)
    ours, wanted = inside.model.state_dict(), outside.model.state_dict()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("mode", MODES)
def test_layer_at_a_time_the_result_is_that_of_a_run_outside(mode, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    for name, entered in (("outside", nullcontext), ("inside", MODES[mode])):
        with entered():
            stat_prune.prune_checkpoint(
                tmp_path / "dense",
                ROWS,
                target=stat_prune.MACs(0.6),
                output_dir=tmp_path / name,
                progress=False,
            )
    ours, wanted = (stat_prune.load(tmp_path / name).state_dict() for name in ("inside", "outside"))
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_layer_at_a_time_works_in_inference_mode(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    with torch.inference_mode():
        stat_prune.prune_checkpoint(
            tmp_path / "dense",
            ROWS,
            target=stat_prune.MACs(0.6),
            output_dir=tmp_path / "out",
            progress=False,
        )
    assert trains(stat_prune.load(tmp_path / "out"))


@pytest.mark.parametrize("allowed", [True, False])
def test_gradients_that_the_caller_forbids_stay_forbidden(allowed):
    with torch.set_grad_enabled(allowed), outside_modes_of_caller():
        assert torch.is_grad_enabled() == allowed
