"""What every published method promises: its budget, its limits, an untouched model, a reload."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from encoders import CONFIGS, budget_for, build, logits, ready, rows
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)
from transformers import BertForTokenClassification as TokenClassification

import stat_prune
from stat_prune import MACs, Parameters, Tolerance
from stat_prune.baselines import fisher
from stat_prune.errors import DataError, ModelError, TargetError
from stat_prune.families import find_blocks
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.surgery.cut import apply

METHODS = ["fisher", "fisher-untuned", "kprune"]
#: With a target that each can reach: KCM leaves the heads.
TARGETS = dict.fromkeys(METHODS, MACs(0.5)) | dict.fromkeys(["kcm", "kcm-untuned"], MACs(0.8))


def prune(model, target, data: Any = None, **settings: Any):
    data = rows() if data is None else data
    settings = {"method": "fisher", "batch_size": 16, "progress": False} | settings
    return stat_prune.prune(model, data, target=target, **settings)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_met_to_less_than_a_neuron(method, family):
    model = build(family)
    for target in (MACs(0.6, seq_length=20), MACs(0.35), Parameters(0.5)):
        report = prune(model, target, method=method).report
        block = find_blocks(model)[1]
        if isinstance(target, Parameters):
            before, after = report.before.block_parameters, report.after.block_parameters
            neuron = block.parameters(2, 2) - block.parameters(1, 1)
        else:
            before, after = report.before.block_macs, report.after.block_macs
            neuron = block.macs(1, 1, report.seq_length)
        assert target.fraction * before - neuron < after <= target.fraction * before * (1 + 1e-9)
        assert all(row.kept >= 1 for row in report.blocks)


@pytest.mark.parametrize("method", METHODS)
def test_the_least_budget_keeps_one_unit_of_every_block(method):
    model = build()
    with pytest.raises(TargetError) as caught:
        prune(model, MACs(0.01), method=method)
    least = float(str(caught.value).split(" cost ")[1].split(" ")[0])
    report = prune(model, MACs(least * 1.0001), method=method).report
    assert all(row.kept == 1 for row in report.blocks)


@pytest.mark.parametrize("method", METHODS)
def test_ignored_blocks_stay_whole_and_count(method):
    model = build()
    report = prune(model, MACs(0.85), method=method, ignore=["heads", 0]).report
    assert {row.layer for row in report.blocks if row.kept < row.total} == {1, 2}
    assert all(row.kept == row.total for row in report.blocks if row.kind == "heads")
    assert 0.84 * report.before.block_macs < report.after.block_macs
    assert report.after.block_macs <= 0.85 * report.before.block_macs * (1 + 1e-9)


@pytest.mark.parametrize("method", TARGETS)
def test_the_given_model_is_untouched_and_the_same_seed_gives_the_same_bits(method):
    model = build(num_labels=1).train()
    model.classifier.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    settings = {"method": method, "seed": 3, "num_calibration_samples": 40}
    first, second = (prune(model, TARGETS[method], **settings) for _ in range(2))
    assert first.plan == second.plan
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    for (name, module), (_, old) in zip(model.named_modules(), before.named_modules(), strict=True):
        assert module.training and vars(module).keys() == vars(old).keys(), name
        assert not module._forward_pre_hooks and not module._forward_hooks, name
    for name, parameter in model.named_parameters():
        old = before.get_parameter(name)
        assert torch.equal(parameter, old) and parameter.grad is None, name
        assert parameter.requires_grad == old.requires_grad, name


@pytest.mark.parametrize("method", TARGETS)
def test_batches_of_another_size_keep_the_same_units(method):
    model = build()
    one, many = (prune(model, TARGETS[method], method=method, batch_size=size) for size in (4, 32))
    assert one.plan == many.plan
    if method == "kcm":
        return  # LSMR stops by a tolerance: here another rounding is another iteration
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(weight, many.model.state_dict()[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", TARGETS)
def test_keeping_everything_is_the_identity(method):
    model = build()
    result = prune(model, MACs(1.0), method=method)
    for name, weight in model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], weight), name


@pytest.mark.parametrize("method", TARGETS)
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForQuestionAnswering"])
def test_the_result_reloads_with_the_same_weights(method, head, tmp_path):
    result = prune(build(head=head), TARGETS[method], method=method)
    result.save(tmp_path / "out")
    loaded = [stat_prune.load(tmp_path / "out")]
    if head == "ForSequenceClassification":
        auto = AutoModelForSequenceClassification
        loaded.append(auto.from_pretrained(tmp_path / "out", trust_remote_code=True))
    ids = torch.arange(5, 25)[None]
    for model in loaded:
        for name, weight in result.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), name
        with torch.no_grad():
            # One sequence: how a matrix times a vector is rounded depends on where weights lie.
            torch.testing.assert_close(model(ids)[0], result.model(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", TARGETS)
@pytest.mark.parametrize("target", [Tolerance(0.1), MACs({"heads": 0.5})])
def test_targets_that_a_method_has_not_are_refused(method, target):
    with pytest.raises(TargetError, match=f"method='{method}' takes one fraction.*method='stat'"):
        prune(build(), target, method=method)


@pytest.mark.parametrize("method", TARGETS)
def test_encoders_with_norms_before_their_sublayers_are_refused(method):
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = ModernBertConfig(**sizes, num_attention_heads=4, pad_token_id=0)
    model = ModernBertForSequenceClassification(config)
    with pytest.raises(ModelError, match=f"method='{method}' is defined for encoders.*in a norm"):
        prune(model, TARGETS[method], method=method)


@pytest.mark.parametrize("method", TARGETS)
def test_decoders_are_refused(method):
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    with pytest.raises(ModelError, match=f"method='{method}' is defined for encoders"):
        prune(llama, MACs(0.8), method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", ["Model", TokenClassification.__name__.removeprefix("Bert")])
def test_models_without_a_decision_are_refused(method, head):
    with pytest.raises(ModelError, match="task head, or use method='stat'"):
        prune(build(head=head), MACs(0.5), method=method)


@pytest.mark.parametrize("label", [3, -1, 0.5])
def test_labels_that_are_no_class_are_refused(label):
    labels = [0.0] * 59 + [label]
    with pytest.raises(DataError, match=rf"label {float(label)} is none of .* classes 0 to 2"):
        prune(build(num_labels=3), MACs(0.5), data=rows(labels=labels))


def gradients_of(model, data) -> dict[str, torch.Tensor]:
    with ready(model, data) as run:
        return fisher._gradients(run, model)


def test_without_labels_the_models_own_predictions_take_their_place():
    model = build(num_labels=3)
    data = rows()
    with torch.no_grad():
        predicted = [int(model(torch.tensor([row["input_ids"]])).logits.argmax()) for row in data]
    assert len(set(predicted)) > 1
    others = [(label + 1) % 3 for label in predicted]
    own, same, different = (
        gradients_of(model, one) for one in (data, rows(labels=predicted), rows(labels=others))
    )
    for name in own:
        torch.testing.assert_close(own[name], same[name])
        assert not torch.allclose(own[name], different[name], rtol=0.1)


def test_without_scores_a_regression_has_the_gradient_of_its_prediction():
    model = build(num_labels=1)
    with ready(model) as run:
        predicted = logits(model, run).squeeze(1)
    zero = gradients_of(model, rows(labels=[0.0] * 60))
    own = gradients_of(model, rows())
    for name in own:
        torch.testing.assert_close(
            zero[name], 2 * predicted[:, None] * own[name], rtol=1e-4, atol=1e-5
        )


def test_folded_masks_give_the_masked_model():
    model = build(num_labels=3)
    with ready(model) as run:
        plans = fisher.plan(run, budget_for(run, MACs(0.5)))
        untuned = fisher.plan_untuned(run, budget_for(run, MACs(0.5)))
        pruned = copy.deepcopy(model)
        apply(pruned, [plan.folded for plan in plans])
        masks = {}
        for plan, plain in zip(plans, untuned, strict=True):
            folded, block = plan.folded, plan.folded.block
            assert torch.equal(folded.units, plain.folded.units)
            dense = model.base_model.get_submodule(block.consumer).weight.double()
            kept = block.channels(folded.units)
            assert torch.equal(plain.folded.weight, dense[:, kept])
            ratios = (folded.weight * dense[:, kept]).sum(0) / dense[:, kept].square().sum(0)
            by_unit = ratios.reshape(len(folded.units), block.unit_size)
            # One number for all channels of a unit, and not one that does nothing.
            torch.testing.assert_close(by_unit, by_unit[:, :1].expand_as(by_unit))
            torch.testing.assert_close(folded.weight, dense[:, kept] * ratios)
            masks[block.name] = torch.zeros(block.num_channels)
            masks[block.name][kept] = ratios.detach().float()
        assert max(float((mask[mask != 0] - 1).abs().max()) for mask in masks.values()) > 0.05
        masked = copy.deepcopy(model)
        for block in run.blocks:
            masked.base_model.get_submodule(block.consumer).register_forward_pre_hook(
                lambda _m, args, mask=masks[block.name]: (args[0] * mask,)
            )
        torch.testing.assert_close(logits(pruned, run), logits(masked, run), rtol=1e-4, atol=1e-4)


def test_a_block_that_loses_no_unit_may_get_another_weight():
    model = build()
    block = find_blocks(model)[0]
    weight = model.base_model.get_submodule(block.consumer).weight.detach().double()
    units = torch.arange(block.num_units)
    same, other = (FoldedConsumer(block, units, w, None, 0.0) for w in (weight, 2 * weight))
    untouched, changed = copy.deepcopy(model), copy.deepcopy(model)
    consumer = untouched.base_model.get_submodule(block.consumer)
    apply(untouched, [same])
    apply(changed, [other])
    assert untouched.base_model.get_submodule(block.consumer) is consumer
    assert torch.equal(changed.base_model.get_submodule(block.consumer).weight.double(), 2 * weight)
