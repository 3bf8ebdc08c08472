"""FLAP's scores, search and biases against plain computations on activations and models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_pruned import IDS, assert_same_model, build, output
from torch import Tensor
from toys import head_block, neuron_block, random_statistics

import stat_prune
from stat_prune import MACs, Parameters, Tolerance
from stat_prune.baselines.flap import _Fluctuation, _search
from stat_prune.errors import TargetError
from stat_prune.families import find_blocks
from stat_prune.linalg import Moments
from stat_prune.model.blocks import Block

BLOCKS = [head_block(6, 6, 3, 7), head_block(6, 2, 3, 7), neuron_block(9, 5, bias=False)]
ROWS = [
    {"input_ids": row} for row in torch.randint(1, 50, (40, 12), generator=torch.manual_seed(2))
]


def fluctuation(block: Block, seed: int = 0) -> tuple[_Fluctuation, Tensor, Tensor]:
    _, activations, consumer = random_statistics(block, seed=seed)
    weight = consumer.weight.detach()
    moments = Moments(block.num_channels).update(activations)
    return _Fluctuation.of(block, moments, weight), activations, weight


@pytest.mark.parametrize("block", BLOCKS, ids=["heads", "shared keys", "neurons"])
def test_scores_are_standardised_weighted_variances_averaged_over_each_head(block):
    found, activations, weight = fluctuation(block)
    metric = activations.numpy().var(axis=0, ddof=1) * np.square(weight.numpy()).sum(axis=0)
    standardised = (metric - metric.mean()) / metric.std(ddof=1)
    expected = standardised.reshape(block.num_groups, -1).mean(axis=1)
    np.testing.assert_allclose(found.scores.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("block", BLOCKS, ids=["heads", "shared keys", "neurons"])
def test_what_leaves_is_replaced_by_its_mean(block):
    found, activations, weight = fluctuation(block)
    plan = found.plan(block.units_at(torch.tensor([0])))
    size = block.num_channels // block.num_groups
    replaced = activations.clone()
    replaced[:, size:] = activations[:, size:].mean(0)
    made = activations[:, :size] @ plan.folded.weight.T + plan.folded.bias
    torch.testing.assert_close(made, replaced @ weight.T)
    dense = activations @ weight.T
    assert plan.folded.units.tolist() == list(range(block.units_per_group))
    assert plan.folded.output_error == pytest.approx(float((made - dense).norm() / dense.norm()))
    lost = (replaced - activations).norm() / activations.norm()
    assert plan.activation_error == pytest.approx(float(lost))


def test_one_threshold_over_all_blocks_spends_the_budget_with_its_biases():
    part = [fluctuation(block, seed)[0] for seed, block in enumerate(BLOCKS)]

    def cost(block, units, groups):
        return block.parameters(units, groups)

    total = sum(cost(one.block, one.block.num_units, one.block.num_groups) for one in part)
    kept = _search(part, cost, 0.6 * total)
    spent = sum(
        cost(one.block, len(groups) * one.block.units_per_group, len(groups))
        + one.block.output_size * (len(groups) < one.block.num_groups)
        for one, groups in zip(part, kept, strict=True)
    )
    assert spent <= 0.6 * total
    for one, groups in zip(part, kept, strict=True):
        others = [j for j in range(one.block.num_groups) if j not in groups.tolist()]
        assert float(one.scores[groups].min()) > float(one.scores[others].max())
        # Whatever else scores at least as much as the lowest kept is kept, or did not fit.
        for other, its in zip(part, kept, strict=True):
            left = [j for j in range(other.block.num_groups) if j not in its.tolist()]
            step = other.cost(len(its) + 1, cost) - other.cost(len(its), cost)
            if float(other.scores[left].max()) > float(one.scores[groups].min()):
                assert spent + step > 0.6 * total or len(groups) == 1
    everything = _search(part, cost, total)
    assert [len(groups) for groups in everything] == [one.block.num_groups for one in part]


def make_constant(model) -> None:
    """Let half of each block's units give the same at every token, in place."""
    for block in find_blocks(model):
        producer = model.base_model.get_submodule(block.producers[-1].path)
        with torch.no_grad():
            half = len(producer.weight) // 2
            producer.weight[half:] = 0
            if producer.bias is not None:
                producer.bias[half:] = torch.linspace(-2, 3, len(producer.bias) - half)


@pytest.mark.parametrize("class_name", ["BertModel", "Qwen2Model"])
def test_constant_channels_leave_without_loss(class_name):
    model = build(class_name)
    make_constant(model)
    # Layer 1 stays whole, which leaves 0.56 to layer 0.
    target = Parameters({"heads": 0.78, "neurons": 0.78})
    result = stat_prune.prune(model, ROWS, target=target, ignore=[1], method="flap", progress=False)
    heads, neurons = result.report.blocks[:2]
    assert heads.kept == heads.total // 2
    assert neurons.total // 2 <= neurons.kept <= 0.56 * neurons.total
    torch.testing.assert_close(output(result.model), output(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fraction", [0.8, 0.5])
def test_added_biases_are_within_the_budget_and_reload_to_the_bit(tmp_path, fraction):
    model = build("LlamaForCausalLM")
    target = Parameters(fraction)
    result = stat_prune.prune(model, ROWS, target=target, method="flap", progress=False)
    before, after = result.report.before, result.report.after
    assert fraction - 0.1 <= after.block_parameters / before.block_parameters <= fraction
    for row, block in zip(result.report.blocks, find_blocks(result.model), strict=True):
        bias = result.model.base_model.get_submodule(block.consumer).bias
        assert (bias is None) == (row.kept == row.total)
    result.save(tmp_path / "out")
    assert_same_model(stat_prune.load(tmp_path / "out"), result.model)
    tokens = result.model.generate(IDS, max_new_tokens=4, do_sample=False)
    assert tokens.shape == (2, IDS.shape[1] + 4)


def test_a_tolerance_is_refused():
    with pytest.raises(TargetError, match="flap.*fraction.*Tolerance"):
        stat_prune.prune(
            build("BertModel"), ROWS, target=Tolerance(0.1), method="flap", progress=False
        )


def test_macs_know_nothing_of_biases():
    result = stat_prune.prune(
        build("LlamaModel"), ROWS, target=MACs(0.6), method="flap", progress=False
    )
    kept = result.report.after.block_macs / result.report.before.block_macs
    assert 0.5 <= kept <= 0.6
