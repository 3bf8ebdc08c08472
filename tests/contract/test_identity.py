"""What costs nothing: keeping everything, and leaving out what is linearly dependent."""

from __future__ import annotations

import copy

import pytest
import torch
from families import Family, output
from torch import nn
from transformers import PreTrainedModel

from stat_prune import MACs, Parameters, Tolerance
from stat_prune.architectures import find_blocks
from stat_prune.blocks import Block, linear


@pytest.mark.parametrize("method", ["stat", "stat-paper", "magnitude"])
def test_keeping_everything_is_the_identity(family: Family, prune, inputs, method):
    model = family.build("ForSequenceClassification")
    result = prune(model, MACs(1.0), method=method)
    difference = (output(result.model, inputs) - output(model, inputs)).abs().max()
    assert difference <= 1e-5
    assert all(row.kept == row.total for row in result.report.blocks)


def make_dependent(model: PreTrainedModel) -> None:
    """Make the second half of each block's units linear combinations of the first, in place."""
    torch.manual_seed(1)
    for block in find_blocks(model):
        producers = [
            linear(model.base_model, path) for path in (*block.producers, *block.shared_producers)
        ]
        for producer in producers:
            repeat_half(producer)
        # The last of query, key and value is the value: the second half of the heads attends as the
        # first does, to a mixture of what the first reads. The last of gate and up is up, in which
        # the network is linear.
        if block.kind == "heads":
            mix_second_half(producers[-1], block)
        elif len(producers) == 2:
            with torch.no_grad():
                producers[-1].weight[len(producers[-1].weight) // 2 :] *= -2


@torch.no_grad()
def repeat_half(layer: nn.Linear) -> None:
    for parameter in layer.parameters():
        half = len(parameter) // 2
        parameter[half:] = parameter[:half]


@torch.no_grad()
def mix_second_half(value: nn.Linear, block: Block) -> None:
    mixing = torch.eye(block.unit_size) + 0.3 * torch.randn(block.unit_size, block.unit_size)
    for parameter in value.parameters():
        heads = parameter.view(block.num_groups, block.unit_size, -1)
        half = block.num_groups // 2
        heads[half:] = mixing @ heads[half:]


@pytest.mark.parametrize("target", [Parameters({"heads": 0.55, "neurons": 0.55}), Tolerance(1e-4)])
def test_linearly_dependent_heads_and_neurons_leave_without_loss(
    family: Family, prune, inputs, target
):
    model = family.build("ForSequenceClassification")
    make_dependent(model)
    result = prune(model, target)
    scale = output(model, inputs).abs().max()
    error = (output(result.model, inputs) - output(model, inputs)).abs().max() / scale
    assert error <= 1e-4
    for row in result.report.blocks:
        assert row.kept <= 0.6 * row.total, row.name
        assert row.output_error <= 1e-4, row.name


def test_the_loss_is_real_where_heads_and_neurons_are_independent(family: Family, prune, inputs):
    model = family.build("ForSequenceClassification")
    result = prune(copy.deepcopy(model), Parameters({"heads": 0.55, "neurons": 0.55}))
    scale = output(model, inputs).abs().max()
    error = (output(result.model, inputs) - output(model, inputs)).abs().max() / scale
    assert error >= 1e-3
