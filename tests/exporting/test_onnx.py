"""A pruned model in ONNX gives what it gives in torch."""

from __future__ import annotations

import pytest
import torch
from hand_pruned import build, pruned
from inputs import in_onnxruntime, random_batch

pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `export`)")
pytest.importorskip("onnxscript", reason="needs onnxscript (the extra `export`)")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize(
    "name",
    ["BertModel", "RobertaForTokenClassification", "LlamaForCausalLM", "Qwen3ForCausalLM"],
)
def test_onnxruntime_gives_the_same_outputs_for_other_shapes(name, tmp_path):
    model, other = pruned(name), random_batch(3, 9, seed=1)
    program, found = in_onnxruntime(model, name, tmp_path, other)
    with torch.no_grad():
        expected = model(**other)[0]
    difference = (found - expected).abs().max()
    assert difference <= 1e-4
    # The graph holds the pruned weights: fewer numbers than the dense model's parameters.
    numbers = sum(tensor.const_value.size for tensor in program.model.graph.initializers.values())
    assert numbers < sum(parameter.numel() for parameter in build(name).parameters())
