"""A finish brings every family's pruned models closer to the dense ones, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from families import Family, output

from stat_prune import MACs, load
from stat_prune.finishing import results


@pytest.fixture(autouse=True)
def one_pass(monkeypatch):
    monkeypatch.setattr(results, "PASSES", 1)


def test_what_is_finished_is_no_farther_from_the_dense_model_and_reloads(
    family: Family, head: str, prune, inputs, tmp_path
):
    model = family.build(head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = prune(model, MACs(0.5), method="id-even")
    result = prune(model, MACs(0.5), method="id-even", finish="scales")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    found = result.report.finish
    assert found is not None
    assert found.distances[found.taken] == min(found.distances)
    assert result.plan == plain.plan
    shapes = [
        {name: tensor.shape for name, tensor in one.model.state_dict().items()}
        for one in (plain, result)
    ]
    assert shapes[0] == shapes[1]
    result.save(tmp_path / "out")
    assert torch.equal(output(load(tmp_path / "out"), inputs), output(result.model, inputs))
