"""What costs nothing: keeping everything, and leaving out what is linearly dependent."""

from __future__ import annotations

import copy

import pytest
import torch
from families import BESIDES, Family, output
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune import MACs, Parameters, Tolerance
from stat_prune.families import find_blocks
from stat_prune.model.projections import Projection, projection


@pytest.mark.parametrize("method", ["stat", *BESIDES])
def test_keeping_everything_is_the_identity(family: Family, prune, inputs, method):
    model = family.build(family.classifier)
    result = prune(model, MACs(1.0), method=method)
    difference = (output(result.model, inputs) - output(model, inputs)).abs().max()
    assert difference <= 1e-5
    assert all(row.kept == row.total for row in result.report.blocks)


def make_dependent(model: PreTrainedModel) -> None:
    """Make the second half of each block's units linear combinations of the first, in place."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "relative_attention_bias" in name:  # one column a head
            weight.data[:, weight.shape[1] // 2 :] = weight.data[:, : weight.shape[1] // 2]
    for block in find_blocks(model):
        parts = [
            (made, rows)
            for producer in block.producers
            for made in [projection(model.base_model, producer.path)]
            for rows in block.part_rows(producer)
        ]
        for made, rows in parts:
            repeat_half(made, rows)
        # The last of query, key and value is the value: the second half of the heads attends as the
        # first does, to a mixture of what the first reads. The last of gate and up is up, in which
        # the network is linear.
        made, rows = parts[-1]
        if block.kind == "heads":
            mixing = torch.eye(block.unit_size) + 0.3 * torch.randn(
                block.unit_size, block.unit_size
            )
            mix_second_half(made, rows, mixing)
        elif len(parts) == 2:
            mix_second_half(made, rows, torch.tensor([[-2.0]]))


def tensors(made: Projection) -> list[Tensor]:
    return [made.weight] if made.bias is None else [made.weight, made.bias]


@torch.no_grad()
def repeat_half(made: Projection, rows: Tensor) -> None:
    half = len(rows) // 2
    for tensor in tensors(made):
        tensor[rows[half:]] = tensor[rows[: len(rows) - half]]


@torch.no_grad()
def mix_second_half(made: Projection, rows: Tensor, mixing: Tensor) -> None:
    half = rows[len(rows) // 2 :]
    for tensor in tensors(made):
        tensor[half] = torch.einsum("ij,hj...->hi...", mixing, tensor[half])


@pytest.mark.parametrize("target", ["fractions", Tolerance(1e-5)], ids=str)
def test_linearly_dependent_heads_and_neurons_leave_without_loss(
    family: Family, prune, inputs, target
):
    model = family.build(family.classifier)
    make_dependent(model)
    if target == "fractions":
        target = half_of_what_can_leave(model)
    elif family.name == "T5":
        # Its scores are not scaled: rounding alone sets equal heads up to 3e-5 apart.
        target = Tolerance(1e-4)
    result = prune(model, target)
    scale = output(model, inputs).abs().max()
    error = (output(result.model, inputs) - output(model, inputs)).abs().max() / scale
    assert error <= 1e-4
    for block, row in zip(find_blocks(model), result.report.blocks, strict=True):
        assert row.output_error <= 1e-4, row.name
        if block.fixed:
            assert row.kept == row.total
        elif isinstance(target, Tolerance):
            assert row.kept <= 0.6 * row.total, row.name


def half_of_what_can_leave(model: PreTrainedModel) -> Parameters:
    return Parameters({block.kind: 0.62 for block in find_blocks(model) if not block.fixed})


@pytest.mark.layouts
def test_the_loss_is_real_where_heads_and_neurons_are_independent(family: Family, prune, inputs):
    model = family.build(family.classifier)
    result = prune(copy.deepcopy(model), half_of_what_can_leave(model))
    scale = output(model, inputs).abs().max()
    error = (output(result.model, inputs) - output(model, inputs)).abs().max() / scale
    assert error >= 1e-3
