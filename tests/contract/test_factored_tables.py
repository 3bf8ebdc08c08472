"""Every family that reads tokens keeps its promises with factored embeddings and heads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import TEXT_FAMILIES, Family, output
from torch import Tensor

import stat_prune
from stat_prune.checkpoints.checkpoint import as_pruned_class, save_checkpoint
from stat_prune.surgery.embeddings import (
    decompose_head,
    decompose_table,
    factor,
    factor_own_head,
)
from stat_prune.surgery.token_tables import own_head

ROWS = TEXT_FAMILIES

LANGUAGE_MODELS = ("ForCausalLM", "ForMaskedLM", "ForConditionalGeneration", "LMHeadModel")


def with_exact_rows(product: Tensor, table: Any) -> Tensor:
    """What factors make of all rows, and those beside them."""
    if table.exact is not None:
        product[table.exact.ids.long()] = table.exact.rows(table.weight)
    return product


def test_factored_embeddings_compute_as_their_product_does_and_reload(
    family: Family, head: str, inputs: Any, tmp_path
) -> None:
    model = family.build(head)
    dense, table = copy.deepcopy(model), model.get_input_embeddings().weight
    factor(model, decompose_table(model, torch.arange(len(table)).double()), 0.6)
    as_pruned_class(model)
    found: Any = model.get_input_embeddings()
    with torch.no_grad():
        product = with_exact_rows(found.projection(found.weight), found)
        dense.get_input_embeddings().weight.copy_(product)
        after = output(model, inputs)
        torch.testing.assert_close(after, output(dense, inputs), rtol=1e-3, atol=1e-3)
    save_checkpoint(tmp_path / "out", model=model)
    with torch.no_grad():
        assert torch.equal(output(stat_prune.load(tmp_path / "out"), inputs), after)


def test_heads_of_their_own_compute_as_their_product_does_and_reload(
    family: Family, inputs: Any, tmp_path
) -> None:
    names = [head for head in family.heads if head in LANGUAGE_MODELS]
    if not names:
        pytest.skip("No head of a language model.")
    model = family.build(names[0], tie_word_embeddings=False)
    if own_head(model) is None:
        pytest.skip("Its head shares the embeddings, whatever the config says.")
    dense, width = copy.deepcopy(model), own_head(model).weight.shape[1]
    counts = torch.arange(len(own_head(model).weight)).double()
    states = torch.eye(width, dtype=torch.float64)
    factor_own_head(model, decompose_head(model, counts, states), 0.6)
    as_pruned_class(model)
    head = own_head(model)
    with torch.no_grad():
        product = head.weight @ head.projection.weight.T + head.projection.bias
        product = with_exact_rows(product, head)
        own_head(dense).weight.copy_(product)
        after = output(model, inputs)
        torch.testing.assert_close(after, output(dense, inputs), rtol=1e-3, atol=1e-3)
    save_checkpoint(tmp_path / "out", model=model)
    with torch.no_grad():
        assert torch.equal(output(stat_prune.load(tmp_path / "out"), inputs), after)
