"""A finish brings pruned models of every family and head no farther from the dense ones."""

from __future__ import annotations

import pytest
import torch
from families import Family, examples, output

from stat_prune import MACs, load


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
