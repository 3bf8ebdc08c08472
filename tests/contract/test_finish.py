"""A finish brings pruned models of every family and head no farther from the dense ones."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, Family, examples, output

from stat_prune import MACs, finish, load

#: One of each way in which layers hold their weights: linear, transposed, gated, fused, of experts.
BESIDE_SCALES = [
    family
    for family in FAMILIES
    if family.label in ("Bert", "GPT2", "Llama", "GPTNeoX-parallel", "Mixtral", "T5", "CLIP", "ViT")
]


@pytest.mark.layouts
def test_what_is_finished_is_no_farther_from_the_dense_model_and_reloads(
    family: Family, head: str, prune, word_salads, word_tokenizer, inputs, tmp_path
):
    model = family.build(head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    few = examples(model, word_salads[:24], word_tokenizer)
    result = prune(
        model, MACs(0.5), few, method="id-even", finish="scales", num_calibration_samples=4
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    found = result.report.finish
    assert found is not None
    assert found.numbers >= len(result.report.blocks)
    assert found.distances[found.taken] == min(found.distances)
    result.save(tmp_path / "out")
    assert torch.equal(output(load(tmp_path / "out"), inputs), output(result.model, inputs))


@pytest.mark.parametrize("kind", ["lora", "weights"])
@pytest.mark.parametrize("row", BESIDE_SCALES, ids=lambda family: family.label)
def test_layers_of_every_kind_are_fitted_themselves_and_reload(
    row: Family, kind: str, prune, word_salads, word_tokenizer, inputs, tmp_path
):
    model = row.build()
    few = examples(model, word_salads[:24], word_tokenizer)
    cut = prune(model, MACs(0.5), few, method="magnitude", num_calibration_samples=16)
    how = {"kind": kind, "teacher": model, "num_calibration_samples": 64, "progress": False}
    result = finish(cut, few, **how)
    found = result.report.finish
    assert found is not None and found.taken > 0
    before, after = (dict(one.model.named_parameters()) for one in (cut, result))
    fitted = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(before[name].ndim > 1 for name in fitted)
    result.save(tmp_path / "out")
    assert torch.equal(output(load(tmp_path / "out"), inputs), output(result.model, inputs))
