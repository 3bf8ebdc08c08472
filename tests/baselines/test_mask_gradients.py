"""Mask gradients against finite differences, example by example."""

from __future__ import annotations

import pytest
import torch
from encoders import build, ready
from torch import Tensor

from stat_prune.baselines.mask_gradients import mask_gradients
from stat_prune.baselines.task_loss import task_losses
from stat_prune.families import find_blocks
from stat_prune.model.running import evaluating

FAMILIES = ["Bert", "DistilBert"]


def setting(family: str):
    """A float64 model, a padded batch with labels, and each example's loss."""
    model = build(family, num_labels=3).double().requires_grad_(False)
    with ready(model) as run:
        batch = run.calibration.batches[-2]
    assert not batch["attention_mask"].all()
    batch = {**batch, "labels": torch.arange(len(batch["input_ids"])) % 3}

    def losses() -> Tensor:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return task_losses(output, batch, labelled=True)

    return model, len(batch["input_ids"]), losses


@pytest.mark.parametrize("family", FAMILIES)
def test_every_example_has_the_gradient_that_finite_differences_give(family):
    model, count, losses = setting(family)
    blocks = find_blocks(model)
    gradients = mask_gradients(model.base_model, blocks, count, losses)

    step = 1e-5
    for block in blocks:
        weight = model.base_model.get_submodule(block.consumer).weight
        assert gradients[block.name].shape == (count, block.num_units)
        for unit in range(0, block.num_units, 3):
            # A mask on what a consumer reads scales the columns that read it.
            columns = block.channels(torch.tensor([unit]))
            dense, found = weight[:, columns].clone(), []
            for mask in (1 + step, 1 - step):
                weight[:, columns] = mask * dense
                found.append(losses())
            weight[:, columns] = dense
            expected = (found[0] - found[1]) / (2 * step)
            actual = gradients[block.name][:, unit].double()
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_unit_is_the_sum_over_its_channels():
    model, count, losses = setting("Bert")
    blocks = find_blocks(model)
    units = mask_gradients(model.base_model, blocks, count, losses)
    channels = mask_gradients(model.base_model, blocks, count, losses, by_channel=True)
    for block in blocks:
        summed = channels[block.name].reshape(count, block.num_units, block.unit_size).sum(2)
        torch.testing.assert_close(summed, units[block.name], rtol=1e-4, atol=1e-6)


def test_nothing_is_left_on_the_model():
    model, count, losses = setting("Bert")
    before = losses()
    with evaluating(model):  # where gradients are off
        mask_gradients(model.base_model, find_blocks(model), count, losses)
        assert not torch.is_grad_enabled()
    assert torch.equal(losses(), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
