"""Every family that reads tokens keeps its promises with factored embeddings."""

from __future__ import annotations

import copy
from typing import Any

import torch
from families import TEXT_FAMILIES, Family, output

import stat_prune
from stat_prune.checkpoints.checkpoint import as_pruned_class, save_checkpoint
from stat_prune.surgery.embeddings import decompose_table, factor

ROWS = TEXT_FAMILIES


def test_factored_embeddings_compute_as_their_product_does_and_reload(
    family: Family, head: str, inputs: Any, tmp_path
) -> None:
    model = family.build(head)
    dense, table = copy.deepcopy(model), model.get_input_embeddings().weight
    factor(model, decompose_table(model, torch.arange(len(table)).double()), 0.6)
    as_pruned_class(model)
    found: Any = model.get_input_embeddings()
    with torch.no_grad():
        product = found.projection(found.weight)
        dense.get_input_embeddings().weight.copy_(product)
        after = output(model, inputs)
        torch.testing.assert_close(after, output(dense, inputs), rtol=1e-3, atol=1e-3)
    save_checkpoint(tmp_path / "out", model=model)
    with torch.no_grad():
        assert torch.equal(output(stat_prune.load(tmp_path / "out"), inputs), after)
