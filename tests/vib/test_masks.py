"""Masks, their information, the expected cost and the multipliers, against independent formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from torch.distributions import Normal, kl_divergence

from stat_prune import MACs, Parameters
from stat_prune.choosing.budget.costs import full_cost
from stat_prune.errors import TargetError
from stat_prune.families import find_blocks
from stat_prune.vib import VIBConfig
from stat_prune.vib.mask_cost import Lagrangian, MaskCosts, warmed_up
from stat_prune.vib.mask_selection import kept_units, select
from stat_prune.vib.masks import MASKS, VIBMask, make_masks, masking

IDENTITY = VIBConfig(initial_spread=0.0, initial_log_variance=-80.0, sublayers=True)


def mask_of(
    means: list[float], log_variances: list[float], width: int = 1, whole: VIBMask | None = None
) -> VIBMask:
    mask = VIBMask(len(means), width, VIBConfig(), torch.Generator().manual_seed(0), whole)
    mask.mean.data, mask.log_variance.data = torch.tensor(means), torch.tensor(log_variances)
    return mask


def test_the_information_is_the_divergence_from_the_best_prior():
    means, log_variances = [0.7, -1.3, 0.2], [-2.0, -0.5, 0.4]
    expected = 0.0
    for mean, log_variance in zip(means, log_variances, strict=True):
        # VIBNet: of all priors N(0, xi), the one of xi = mean^2 + sigma^2 is nearest.
        posterior = Normal(torch.tensor(mean), torch.tensor(log_variance / 2).exp())
        prior = Normal(torch.tensor(0.0), (torch.tensor(mean**2) + math.exp(log_variance)).sqrt())
        expected += float(kl_divergence(posterior, prior))
    assert float(mask_of(means, log_variances).kl()) == pytest.approx(expected, rel=1e-5)


def test_log_alpha_is_below_zero_where_the_mean_outweighs_the_noise():
    alpha = mask_of([1.0, 0.5, 0.1], [0.1, math.log(0.25), -3.0]).log_alpha()
    assert torch.allclose(alpha, torch.tensor([0.1, 0.0, -3.0 - math.log(0.01)]), atol=1e-5)


def test_masks_in_training_have_the_mean_and_the_variance_they_say():
    mask = mask_of([0.5, 2.0], [math.log(0.04), math.log(0.25)], width=3).train()
    torch.manual_seed(0)
    drawn = mask(torch.ones(20_000, 2, 6))
    assert torch.equal(drawn[:, 0], drawn[:, 1])  # one draw an example, not a token
    assert torch.equal(drawn[..., 0], drawn[..., 2])  # and a head, not a channel
    columns = drawn[:, 0, ::3]
    assert torch.allclose(columns.mean(0), torch.tensor([0.5, 2.0]), atol=0.02)
    assert torch.allclose(columns.var(0), torch.tensor([0.04, 0.25]), rtol=0.05)


def test_masks_in_evaluation_are_their_means():
    mask = mask_of([0.5, 2.0], [1.0, 1.0], width=2).eval()
    assert mask(torch.ones(1, 1, 4)).flatten().tolist() == [0.5, 0.5, 2.0, 2.0]
    mask.kept[0] = False
    assert mask(torch.ones(1, 1, 4)).flatten().tolist() == [0.0, 0.0, 2.0, 2.0]


def test_a_mask_over_a_sublayer_multiplies_all_units_by_one_more_draw():
    whole = mask_of([3.0], [math.log(0.16)], width=4)
    mask = mask_of([0.5, 2.0], [-80.0, -80.0], width=2, whole=whole).train()
    torch.manual_seed(0)
    drawn = mask(torch.ones(20_000, 2, 4)) / torch.tensor([0.5, 0.5, 2.0, 2.0])
    assert torch.allclose(drawn, drawn[:, :1, :1].expand_as(drawn))
    assert float(drawn[:, 0, 0].mean()) == pytest.approx(3.0, abs=0.02)
    assert float(drawn[:, 0, 0].var()) == pytest.approx(0.16, rel=0.05)
    assert mask.eval()(torch.ones(1, 1, 4)).flatten().tolist() == [1.5, 1.5, 6.0, 6.0]
    alone = mask_of([0.5, 2.0], [-80.0, -80.0], width=2)
    assert float(mask.kl()) == pytest.approx(float(alone.kl()) + float(whole.kl()))
    assert mask.num_masks == 3


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("training", [True, False])
def test_masks_of_mean_one_without_noise_change_nothing(build, training, inputs):
    model, blocks = build(), find_blocks(build())
    with torch.no_grad():
        expected = model(**inputs)[0]
        masks = make_masks(blocks, IDENTITY, seed=0)
        with masking(model, blocks, masks, Lagrangian()):
            for mask in masks:
                mask.train(training)
            found = model(**inputs)[0]
            assert any(name.startswith(MASKS) for name in model.state_dict())
    assert torch.allclose(found, expected, atol=1e-6)
    assert not any(name.startswith(MASKS) for name in model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], expected)


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("target", [MACs(0.5), Parameters(0.5)])
def test_the_expected_cost_of_certain_masks_is_the_cost_of_the_cut_model(build, target):
    blocks, cost = find_blocks(build()), target.cost(20)
    costs = MaskCosts.of(blocks[1:], blocks[:1], cost)
    masks = make_masks(blocks[1:], VIBConfig(), seed=0)
    kept = []
    for block, mask in zip(blocks[1:], masks, strict=True):
        mask.log_variance.data[::2] = 80.0
        groups = block.num_groups // 2
        kept.append(cost(block, groups * block.units_per_group, groups))
    expected = full_cost(blocks[0], cost) + sum(kept)
    found = float(costs.expected(masks, 1.0)) * sum(full_cost(b, cost) for b in blocks)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("target", [MACs(0.5), Parameters(0.5)])
def test_a_sublayer_that_is_certain_to_leave_costs_no_more_than_its_bias(target):
    blocks, cost = find_blocks(tiny_bert()), target.cost(20)
    costs = MaskCosts.of(blocks, [], cost, sublayers=True)
    masks = make_masks(blocks, VIBConfig(sublayers=True), seed=0)
    masks[1].whole.log_variance.data.fill_(80.0)
    left = [b for i, b in enumerate(blocks) if i != 1]
    expected = sum(full_cost(block, cost) for block in left) + cost(blocks[1], 0, 0)
    found = float(costs.expected(masks, 1.0)) * costs.total
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_multipliers_climb_while_the_cost_is_above_the_target():
    lagrangian = Lagrangian()
    cost = torch.tensor(0.8, requires_grad=True)
    lagrangian(cost, 0.5).backward()
    assert lagrangian.linear.grad == pytest.approx(0.3)
    assert lagrangian.quadratic.grad == pytest.approx(0.09)
    lagrangian.linear.data.fill_(2.0)
    lagrangian.quadratic.data.fill_(3.0)
    (slope,) = torch.autograd.grad(lagrangian(cost, 0.5), cost)
    assert float(slope) == pytest.approx(2.0 + 2 * 3.0 * 0.3)


def test_the_target_falls_linearly_and_then_stays():
    steps = [warmed_up(1.0, 0.4, step, 4) for step in range(7)]
    assert steps == pytest.approx([1.0, 0.85, 0.7, 0.55, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("fraction", [0.3, 0.55, 0.9])
def test_what_is_kept_is_the_best_that_fits(fraction):
    blocks = find_blocks(tiny_bert(intermediate_size=200))
    cost = Parameters(0.5).cost(20)
    costs = MaskCosts.of(blocks, [], cost)
    generator = torch.Generator().manual_seed(3)
    alphas = [torch.randn(block.num_groups, generator=generator) for block in blocks]
    masks = [mask_of([1.0] * len(alpha), alpha.tolist()) for alpha in alphas]
    chosen = select(masks, costs, fraction)
    total = sum(full_cost(block, cost) for block in blocks)
    paid = sum(
        cost(block, len(units), len(block.groups(units)))
        for block, kept in zip(blocks, chosen.kept, strict=True)
        for units in [kept_units(block, kept)]
    )
    assert chosen.fraction == pytest.approx(paid / total)
    assert 0.99 * fraction <= chosen.fraction <= fraction * (1 + 1e-9)
    neurons = [i for i, block in enumerate(blocks) if block.kind == "neurons"]
    worst = max(float(alphas[i][chosen.kept[i]].max()) for i in neurons)
    best = min(float(alphas[i][~chosen.kept[i]].min()) for i in neurons)
    assert worst < best


def test_units_go_with_their_sublayer_whatever_their_own_masks_say():
    blocks = find_blocks(tiny_bert(intermediate_size=200))
    cost = Parameters(0.5).cost(20)
    costs = MaskCosts.of(blocks, [], cost, sublayers=True)
    generator = torch.Generator().manual_seed(3)
    masks = [
        mask_of(
            [1.0] * block.num_groups,
            (torch.randn(block.num_groups, generator=generator) - 4).tolist(),
            whole=mask_of([1.0], [5.0 if i in (0, 3) else -5.0]),
        )
        for i, block in enumerate(blocks)
    ]
    rest = costs.fixed + sum(full_cost(b, cost) - cost(b, 0, 0) for b in (blocks[1], blocks[2]))
    chosen = select(masks, costs, 0.9 * rest / costs.total)
    assert not chosen.kept[0].any() and not chosen.kept[3].any()
    assert chosen.fraction == pytest.approx(0.9 * rest / costs.total, rel=0.01)
    assert chosen.threshold_fraction == pytest.approx(rest / costs.total)
    # a budget beyond what is certain to stay is spent on the best of what is left
    more = select(masks, costs, 1.01 * rest / costs.total)
    assert more.kept[1].all() and more.kept[2].all()
    assert more.kept[0].any() or more.kept[3].any()


def test_where_sublayers_may_leave_one_unit_of_any_is_the_least():
    blocks = find_blocks(tiny_bert())
    costs = MaskCosts.of(blocks, [], Parameters(0.5).cost(20), sublayers=True)
    least = (costs.fixed + min(costs.per_mask)) / costs.total
    costs.check_reachable(least)
    with pytest.raises(TargetError, match="least that can be reached"):
        costs.check_reachable(0.99 * least)
    masks = make_masks(blocks, VIBConfig(sublayers=True), seed=0)
    assert sum(int(kept.sum()) for kept in select(masks, costs, least).kept) == 1


def test_a_target_below_one_unit_a_block_is_refused():
    blocks = find_blocks(tiny_bert())
    costs = MaskCosts.of(blocks, [], Parameters(0.5).cost(20))
    least = sum(block.parameters(1, 1) for block in blocks) / costs.total
    costs.check_reachable(least)
    with pytest.raises(TargetError, match=r"least that can be reached"):
        costs.check_reachable(0.99 * least)


def test_query_heads_leave_with_their_key_value_head():
    block = copy.copy(find_blocks(tiny_llama())[0])
    assert (block.num_units, block.num_groups) == (4, 2)
    assert kept_units(block, torch.tensor([False, True])).tolist() == [2, 3]
