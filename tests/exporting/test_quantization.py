"""Quantization after pruning."""

from __future__ import annotations

import io

import pytest
import torch
from hand_pruned import output, pruned
from torch import nn

quantization = pytest.importorskip(
    "torchao.quantization", reason="needs torchao (the extra `export`)"
)


@pytest.mark.parametrize("name", ["BertModel", "LlamaModel"])
def test_int8_weights_and_activations_change_little(name):
    model = pruned(name)
    expected = output(model)
    linear = sum(m.weight.numel() for m in model.modules() if type(m) is nn.Linear)
    size = stored_bytes(model)
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    error = (output(model) - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    # Scales, and the names of the classes that tensors are of, take some of what is saved.
    assert stored_bytes(model) < size - 2 * linear


def stored_bytes(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()
