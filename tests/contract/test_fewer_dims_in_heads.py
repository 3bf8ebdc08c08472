"""Every family whose heads can be narrower keeps its promises with fewer dimensions in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, Family, completed, output
from transformers import PreTrainedModel

import stat_prune
from stat_prune import MACs
from stat_prune.checkpoints.checkpoint import as_pruned_class, save_checkpoint
from stat_prune.choosing.head_dims import HeadDims
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.families import find_blocks, stacks_of
from stat_prune.model.projections import projection
from stat_prune.pipeline.inside_heads.dims_search import head_dims_of
from stat_prune.surgery.narrowing import narrow


def offers(family: Family) -> bool:
    stacks = stacks_of(family.build())
    return all(one.own_dims for stack, _ in stacks for one in stack.attentions)


ROWS = [family for family in FAMILIES if offers(family)]


def dims_of(model: PreTrainedModel, inputs: Any) -> list[HeadDims]:
    rows = completed(model, inputs)
    count = len(next(iter(rows.values())))
    examples = [{name: values[n] for name, values in rows.items()} for n in range(count)]
    calibration = calibration_set_for(model, examples, None, num_samples=count)
    heads = [block for block in find_blocks(model) if block.kind == "heads"]
    return head_dims_of(model, heads, calibration.batches, count)


def narrowed(model: PreTrainedModel, inputs: Any) -> PreTrainedModel:
    """Two dimensions less for values, and for queries and keys where they can have fewer."""
    found = []
    for one in dims_of(model, inputs):
        size = one.block.unit_size
        fewer = size if one.query_key_multiple == size else size - 2
        found.append(one.narrowed(fewer, size - 2))
    narrow(model, found)
    return as_pruned_class(model)


def without_two_dimensions(model: PreTrainedModel, inputs: Any) -> PreTrainedModel:
    """The model with heads that make nothing of a pair of dimensions each."""
    for one in dims_of(model, inputs):
        size, base = one.block.unit_size, model.base_model
        *_, keys, values = (projection(base, p.path) for p in one.block.producers)
        of_keys = [] if one.query_key_multiple == size else [size // 2 - 1, size - 1]
        for layer, dims in ((keys, of_keys), (values, [0, 1])):
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    tensor.data.unflatten(0, (-1, size))[:, dims] = 0
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_what_makes_nothing_leaves_without_loss(
    family: Family, inputs: Any, implementation: str
) -> None:
    model = without_two_dimensions(family.build(), inputs)
    model.set_attn_implementation(implementation)
    dense = output(model, inputs)
    torch.testing.assert_close(output(narrowed(model, inputs), inputs), dense, rtol=1e-3, atol=1e-4)


def test_it_reloads_to_the_bit(family: Family, head: str, inputs: Any, tmp_path) -> None:
    model = narrowed(family.build(head), inputs)
    save_checkpoint(tmp_path / "out", model=model)
    assert torch.equal(output(stat_prune.load(tmp_path / "out"), inputs), output(model, inputs))


def test_writing_with_the_cache_is_writing_without(decoder: Family, inputs: Any) -> None:
    model = narrowed(decoder.build("ForCausalLM"), inputs)
    cached, computed = (
        model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, computed)


def test_a_budget_is_met_and_a_second_pruning_reads_the_result(family: Family, prune: Any) -> None:
    model = family.build(family.classifier)
    result = prune(model, MACs(0.6), head_dims=True, effort="fast")
    before, after = result.report.before, result.report.after
    assert after.block_macs <= 0.6 * before.block_macs
    assert len(result.report.head_dims.distances) == 2
    again = prune(result.model, MACs(0.7))
    assert again.report.after.block_macs <= 0.7 * after.block_macs
