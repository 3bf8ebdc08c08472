"""A pruned model in ONNX gives what it gives in torch."""

from __future__ import annotations

import pytest
import torch
from hand_pruned import build, pruned
from inputs import random_batch

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `export`)")
pytest.importorskip("onnxscript", reason="needs onnxscript (the extra `export`)")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize(
    "name",
    ["BertModel", "RobertaForTokenClassification", "LlamaForCausalLM", "Qwen3ForCausalLM"],
)
def test_onnxruntime_gives_the_same_outputs_for_other_shapes(name, tmp_path):
    model = pruned(name)
    batch = random_batch(2, 12)
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=38)}
    fixed = {"use_cache": False} if "Causal" in name else {}
    program = torch.onnx.export(
        model,
        (),
        kwargs={**batch, **fixed},
        dynamo=True,
        dynamic_shapes={**dict.fromkeys(batch, dimensions), **dict.fromkeys(fixed)},
        verbose=False,
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    other = random_batch(3, 9, seed=1)
    (found, *_) = session.run(
        None, {one.name: other[one.name].numpy() for one in session.get_inputs()}
    )
    with torch.no_grad():
        expected = model(**other)[0]
    difference = (torch.from_numpy(found) - expected).abs().max()
    assert difference <= 1e-4
    # The graph holds the pruned weights: fewer numbers than the dense model's parameters.
    numbers = sum(tensor.const_value.size for tensor in program.model.graph.initializers.values())
    assert numbers < sum(parameter.numel() for parameter in build(name).parameters())
