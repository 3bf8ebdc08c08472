"""K-prune: what it measures, what it solves for, and what it does not look at."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from encoders import budget_for, build, ready, rows

from stat_prune import MACs
from stat_prune.baselines import kprune
from stat_prune.baselines.layer_inputs import LayerwiseModel, dense_sums, mask_block
from stat_prune.baselines.task_loss import decisions
from stat_prune.data.batching import token_mask


@pytest.fixture(scope="module", params=[1, 3], ids=["regression", "classes"])
def model(request):
    return build(num_labels=request.param)


def predictions(dense: LayerwiseModel):
    """The dense model's decisions about each batch."""
    return [decisions(dense.finish(number), batch) for number, batch in enumerate(dense.batches)]


def explicit(pruned: LayerwiseModel, block, sums):
    """All channels of a block in a pruned model, and what they should add, token by token."""
    moments_input = {}
    consumer = pruned.model.base_model.get_submodule(block.consumer)
    producer = pruned.model.base_model.get_submodule(block.producers[0].path)
    handles = [
        producer.register_forward_pre_hook(lambda _m, args: moments_input.update(x=args[0])),
        consumer.register_forward_pre_hook(lambda _m, args: moments_input.update(a=args[0])),
    ]
    channels, targets = [], []
    for position, batch in enumerate(pruned.batches):
        pruned.finish(position)
        mask = token_mask(batch)
        channels.append(moments_input["a"][mask])
        targets.append((sums[position] - moments_input["x"] - consumer.bias)[mask])
    for handle in handles:
        handle.remove()
    return torch.cat(channels).double(), torch.cat(targets).double()


@torch.no_grad()
def test_tuning_brings_every_sublayer_closer_to_the_dense_one(model):
    with ready(model) as run:
        plans = kprune.plan(run, budget_for(run, MACs(0.5)))
        dense, pruned = (
            LayerwiseModel(one, run.calibration.batches) for one in (model, copy.deepcopy(model))
        )
        for layer in range(3):
            members = [plan.folded for plan in plans if plan.folded.block.layer == layer]
            sums = dense_sums(dense, [folded.block for folded in members])
            for folded in members:
                block, kept = folded.block, folded.block.channels(folded.units)
                channels, targets = explicit(pruned, block, sums[block.name])
                weight = pruned.model.base_model.get_submodule(block.consumer).weight.double()

                def error(columns, channels=channels[:, kept], targets=targets):
                    return float((channels @ columns.T - targets).norm() / targets.norm())

                assert len(folded.units) < block.num_units
                assert error(folded.weight) < 0.95 * error(weight[:, kept])
                best = np.linalg.lstsq(channels[:, kept].numpy(), targets.numpy(), rcond=None)[0]
                np.testing.assert_allclose(folded.weight.T, best, rtol=1e-3, atol=1e-3)
                mask_block(pruned.model, block, folded.units, folded.weight)
            pruned.advance()


@torch.no_grad()
def test_an_unpruned_model_knows_all_predictions_and_each_channel_its_output(model):
    with ready(model) as run:
        dense = LayerwiseModel(model, run.calibration.batches)
        knowledge = kprune._Knowledge(predictions(dense)).of(dense, run.blocks)
        sums = dense_sums(dense, run.blocks[:2])
        block = run.blocks[1]
        start = LayerwiseModel(model, run.calibration.batches)
        channels, _ = explicit(start, block, sums[block.name])
    weight = model.base_model.get_submodule(block.consumer).weight.double()
    outputs = [channels[:, [c]] @ weight[:, [c]].T for c in range(channels.shape[1])]
    expected = torch.stack([output.square().mean() for output in outputs])
    # Divergence is least at the dense model, so predictive knowledge has no part in this.
    torch.testing.assert_close(
        knowledge[block.name], kprune.REPRESENTATIONAL * expected, rtol=1e-4, atol=1e-10
    )


@torch.no_grad()
def test_what_the_dense_model_knows_is_in_the_statistics_already(model):
    with ready(model) as run:
        dense = LayerwiseModel(run.model, run.calibration.batches)
        found, statistics = kprune._collect(run, dense)
        for one, other in zip(found, predictions(dense), strict=True):
            assert all(map(torch.equal, one, other))
        measured = kprune._Knowledge(found).of(dense, run.blocks)
        known = kprune._knowledge_of_dense(statistics)
    assert known.keys() == measured.keys()
    for name, values in known.items():
        torch.testing.assert_close(values, measured[name], rtol=1e-4, atol=1e-10)


def test_predictive_knowledge_is_half_the_mean_squared_gradient_of_the_divergence(
    model, monkeypatch
):
    monkeypatch.setattr(kprune, "REPRESENTATIONAL", 0.0)
    damaged = copy.deepcopy(model).double().requires_grad_(False)
    dense = copy.deepcopy(damaged)
    with ready(damaged, batch_size=64) as run, torch.no_grad():
        block = run.blocks[3]
        damaged.base_model.get_submodule(run.blocks[0].consumer).weight[:, :6] = 0
        batches = run.calibration.batches
        knowledge = kprune._Knowledge(predictions(LayerwiseModel(dense, batches)))
        found = knowledge.of(LayerwiseModel(damaged, batches), run.blocks[2:])[block.name]
        before, batch = (m(**batches[0]).logits for m in (dense, damaged)), batches[0]
        before = next(before)
        weight = damaged.base_model.get_submodule(block.consumer).weight

        def divergence():
            after = damaged(**batch).logits
            if after.shape[1] == 1:
                return ((after - before) / before.std()).square().squeeze(1)
            p, q = (before / 2).softmax(1), (after / 2).log_softmax(1)
            return 4 * (p * (p.log() - q)).sum(1)

        for channel in (0, 7, 31):
            column, values = weight[:, channel].clone(), []
            for mask in (1 + 1e-5, 1 - 1e-5):
                weight[:, channel] = mask * column
                values.append(divergence())
            weight[:, channel] = column
            slope = (values[0] - values[1]) / 2e-5
            expected = float(slope.square().mean()) / 2
            assert float(found[channel]) == pytest.approx(expected, rel=1e-3, abs=1e-12)


def plan_of(model, data=None, fraction=0.5):
    with ready(model, data) as run:
        return {
            plan.folded.block.name: plan.folded
            for plan in kprune.plan(run, budget_for(run, MACs(fraction)))
        }


def test_labels_and_the_scale_of_a_regression_make_no_difference():
    model = build(num_labels=1)
    plain = plan_of(model)
    labelled = plan_of(model, rows(labels=[float(index) for index in range(60)]))
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in scaled.classifier.parameters():
            parameter.mul_(4)
    rescaled = plan_of(scaled)
    for name, folded in plain.items():
        assert torch.equal(labelled[name].units, folded.units)
        assert torch.equal(labelled[name].weight, folded.weight)
        assert torch.equal(rescaled[name].units, folded.units)
