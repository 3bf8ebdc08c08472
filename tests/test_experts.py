"""Experts: what is collected is what they compute, whatever their tokens and sizes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_models import SIZES
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeModel

from stat_prune import MACs, prune
from stat_prune.errors import TargetError
from stat_prune.families import find_blocks
from stat_prune.model.blocks import Block
from stat_prune.model.experts import routed_rows
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import apply

EXPERTS = SIZES | {"num_key_value_heads": 2, "num_experts_per_tok": 2}
IDS = torch.randint(3, 60, (4, 11), generator=torch.Generator().manual_seed(2))
MASK = torch.ones_like(IDS).index_fill_(1, torch.tensor([9, 10]), 0)


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**EXPERTS, num_local_experts=4)).eval()


def qwen2_moe() -> Qwen2MoeModel:
    torch.manual_seed(0)
    config = EXPERTS | {"num_experts": 4, "moe_intermediate_size": 48}
    return Qwen2MoeModel(
        Qwen2MoeConfig(**config, shared_expert_intermediate_size=32, norm_topk_prob=False)
    ).eval()


def experts_of(model, layer: int) -> list[Block]:
    return [block for block in find_blocks(model) if block.expert_of and block.layer == layer]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("build", [mixtral, qwen2_moe])
@torch.no_grad()
def test_the_rows_of_all_experts_give_what_their_module_adds_to_the_stream(build, masked):
    model = build()
    base = model.base_model
    blocks = experts_of(model, 1)
    calls = []
    experts = base.get_submodule(blocks[0].expert_of)
    experts.register_forward_hook(lambda _module, args, out: calls.append((args, out)))
    model(input_ids=IDS, attention_mask=MASK)
    ((args, out),) = calls
    mask = MASK.bool() if masked else None
    found, count = torch.zeros(32), 0
    for block in blocks:
        rows = routed_rows(base, block, args, mask)
        found += rows.sum(0) @ projection(base, block.consumer).weight.T
        count += len(rows)
    real = MASK.bool().reshape(-1) if masked else torch.ones(IDS.numel(), dtype=torch.bool)
    assert count == 2 * int(real.sum())
    torch.testing.assert_close(found, out[real].sum(0), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_experts_of_unequal_sizes_compute_as_if_their_other_neurons_were_zero():
    model = mixtral()
    zeroed, cut = copy.deepcopy(model), copy.deepcopy(model)
    folded = []
    for block, count in zip(experts_of(model, 0), (10, 20, 13), strict=False):
        units = torch.arange(5, 5 + count)
        weight = projection(zeroed.base_model, block.consumer).weight
        folded.append(FoldedConsumer(block, units, weight[:, units].clone(), None, 0.0))
        weight[:, torch.ones(48).index_fill_(0, units, 0).bool()] = 0
    # The fourth expert keeps all of its 48 neurons.
    apply(cut, folded)
    assert experts_of(cut, 0)[0].num_units == 48
    expected = zeroed(input_ids=IDS).logits
    torch.testing.assert_close(cut(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)

    last = experts_of(model, 0)[3]
    weight = projection(zeroed.base_model, last.consumer).weight
    apply(
        cut, [FoldedConsumer(last, torch.arange(48), torch.zeros(32, 48), None, 0.0)]
    )  # its consumer changes, its neurons do not
    weight.zero_()
    expected = zeroed(input_ids=IDS).logits
    torch.testing.assert_close(cut(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_experts_of_one_layer_keep_equally_many_but_not_the_same_neurons():
    model = mixtral()
    examples = [{"input_ids": row} for row in IDS.repeat(4, 1)]
    result = prune(model, examples, target=MACs({"neurons": 0.5}), progress=False)
    for layer in range(2):
        kept = [result.plan[block.name] for block in experts_of(model, layer)]
        assert {len(units) for units in kept} <= {8, 16, 24, 32, 40}
        assert len({len(units) for units in kept}) == 1
        assert len(set(map(tuple, kept))) > 1
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_an_expert_that_no_token_reaches_is_pruned_with_the_others():
    model = mixtral()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[0] = 0
            layer.mlp.gate.weight[1:].abs_()
            # Positive scores for all experts but the first, whose score is zero.
            layer.post_attention_layernorm.register_forward_hook(lambda _m, _a, out: out.abs())
    examples = [{"input_ids": row} for row in IDS.repeat(4, 1)]
    result = prune(model, examples, target=MACs({"neurons": 0.5}), progress=False)
    sizes = {block.num_units for block in experts_of(result.model, 0)}
    assert len(sizes) == 1 and max(sizes) < 48
    rows = {row.name: row for row in result.report.blocks}
    assert not math.isnan(rows["layers.0.expert0.neurons"].output_error)
    with torch.no_grad():
        assert torch.isfinite(result.model(input_ids=IDS).logits).all()


def test_some_experts_of_a_layer_cannot_be_ignored_alone():
    examples = [{"input_ids": row} for row in IDS]
    with pytest.raises(TargetError, match=r"some experts of layers\.0\.mlp\.experts alone"):
        prune(mixtral(), examples, target=MACs(0.5), ignore=["layers.0.expert1.*"], progress=False)
    kept = prune(mixtral(), examples, target=MACs(0.8), ignore=["layers.0.expert*"], progress=False)
    assert all(row.kept == row.total for row in kept.report.blocks if "0.expert" in row.name)
