"""Weights that are not finite are named: those that a model has, and those that it would get."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import tiny_bert
from torch.nn.utils.prune import random_unstructured
from transformers import BertForMaskedLM

import stat_prune
from stat_prune.errors import ModelError, NonFiniteWeightsError
from stat_prune.families import find_blocks
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.model_checks import check_weights_are_finite
from stat_prune.surgery.cut import apply


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("cls.predictions.bias", -math.inf, False),
        ("cls.predictions.bias", math.inf, True),
        ("cls.predictions.bias", math.nan, True),
        ("bert.encoder.layer.0.output.dense.bias", -math.inf, True),
        ("bert.embeddings.word_embeddings.weight", -math.inf, True),
    ],
)
def test_minus_infinity_may_mask_a_class_and_nothing_else_is_taken(name, value, refused):
    model = tiny_bert(BertForMaskedLM)
    model.get_parameter(name).data[7] = value
    if not refused:
        return check_weights_are_finite(model, model.state_dict().items())
    with pytest.raises(NonFiniteWeightsError, match=rf"{name} \(\d+ entries, .*\(7,.*: {value}\)"):
        check_weights_are_finite(model, model.state_dict().items())


@pytest.mark.parametrize("where", ["weight", "bias"])
@pytest.mark.parametrize("value", [1e5, math.nan])
def test_a_correction_that_the_dtype_cannot_hold_is_refused_and_nothing_is_cut(where, value):
    model = tiny_bert().half()
    block = next(one for one in find_blocks(model) if one.kind == "neurons")
    tensors = {
        "weight": torch.zeros(block.output_size, 2, dtype=torch.float64),
        "bias": torch.zeros(block.output_size, dtype=torch.float64),
    }
    tensors[where].view(-1)[3] = value
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = FoldedConsumer(block, torch.tensor([1, 4]), **tensors, output_error=0.0)
    with pytest.raises(NonFiniteWeightsError, match=rf"{block.consumer} .*torch.float16.*float32"):
        apply(model, [folded])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_sparse_weights_are_refused_with_the_way_to_make_them_dense():
    model = tiny_bert()
    layer = model.encoder.layer[0].output.dense
    layer.weight = torch.nn.Parameter(layer.weight.detach().to_sparse())
    with pytest.raises(ModelError, match=r"layer.0.output.dense.weight .* sparse.*to_dense"):
        stat_prune.prune(model, [[1, 2]], target=stat_prune.MACs(0.6), progress=False)


COMPUTED = {
    "spectral norm": torch.nn.utils.spectral_norm,
    "weight norm": torch.nn.utils.parametrizations.weight_norm,
    "mask": lambda layer: random_unstructured(layer, "weight", 0.5),
    "quantized": lambda layer: None,
}


@pytest.mark.parametrize("how", COMPUTED)
def test_weights_that_are_computed_from_others_are_refused_and_the_way_to_plain_ones_is_said(how):
    model = tiny_bert()
    COMPUTED[how](model.encoder.layer[0].intermediate.dense)
    if how == "quantized":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    with pytest.raises(ModelError, match=r"no weight of its own.*full-precision model"):
        stat_prune.prune(model, [[1, 2]], target=stat_prune.MACs(0.6), progress=False)
