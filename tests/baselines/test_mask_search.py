"""The searches against exhaustive ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from toys import head_block, neuron_block

from stat_prune.baselines.mask_search import rearrange, search
from stat_prune.baselines.ranking import RankedUnits, budget_of
from stat_prune.model.blocks import Block
from stat_prune.settings.targets import MACs


def blocks() -> list[Block]:
    made = [head_block(3, 3, 2, 6), neuron_block(4, 6, bias=True)] * 2
    return [
        Block(**{**vars(block), "name": f"{index}.{block.kind}"})
        for index, block in enumerate(made)
    ]


def importance(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        block.name: torch.rand(block.num_units, generator=generator, dtype=torch.float64)
        * (3 if block.kind == "heads" else 1)
        for block in blocks()
    }


@pytest.mark.parametrize("fraction", [0.35, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_choice_within_the_budget_keeps_more_importance(seed, fraction):
    chosen, scores = blocks(), importance(seed)
    cost = MACs(fraction).cost(11.0)
    budget = budget_of(chosen, [], fraction, cost)

    def spent(kept: dict[str, torch.Tensor]) -> float:
        return sum(cost(block, len(kept[block.name]), len(kept[block.name])) for block in chosen)

    kept = search(chosen, scores, cost, budget)

    assert spent(kept) <= budget * (1 + 1e-9)
    saved = sum(float(scores[name][units].sum()) for name, units in kept.items())
    most = 0.0
    # Of a number of units in one block the best are its most important ones.
    for sizes in itertools.product(*(range(1, block.num_units + 1) for block in chosen)):
        trial = {
            block.name: scores[block.name].argsort(descending=True)[:size]
            for block, size in zip(chosen, sizes, strict=True)
        }
        if spent(trial) <= budget * (1 + 1e-9):
            most = max(most, sum(float(scores[name][u].sum()) for name, u in trial.items()))
    assert saved == pytest.approx(most, rel=1e-12)


def test_untouched_blocks_are_paid_for_in_full():
    chosen = blocks()
    cost = MACs(0.5).cost(11.0)
    total = sum(cost(block, block.num_units, block.num_units) for block in chosen)
    whole = cost(chosen[3], 4, 4)
    assert budget_of(chosen[:3], chosen[3:], 0.5, cost) == pytest.approx(0.5 * total - whole)


def test_one_threshold_ranks_the_units_of_all_blocks():
    chosen, scores = blocks(), importance(0)
    cost = MACs(0.5).cost(11.0)
    ranking = RankedUnits(chosen, scores, cost)
    assert len(ranking.scores) == 10  # of 14 units, one a block is not for sale
    assert ranking.costs[0] == sum(cost(block, 1, 1) for block in chosen)
    for count in range(len(ranking.scores) + 1):
        kept = ranking.units(count)
        paid = sum(cost(block, len(kept[block.name]), len(kept[block.name])) for block in chosen)
        assert float(ranking.costs[count]) == pytest.approx(paid)
        assert ranking.most_within(paid) == count
        threshold = float(ranking.scores[count - 1]) if count else float("inf")
        for block in chosen:
            best = int(scores[block.name].argmax())
            expected = {u for u, s in enumerate(scores[block.name].tolist()) if s >= threshold}
            assert set(kept[block.name].tolist()) == expected | {best}
    assert ranking.most_within(0.9 * float(ranking.costs[0])) == -1


def objective(gradients: torch.Tensor, kept: torch.Tensor) -> float:
    """The quadratic form of the Fisher information at the units that leave."""
    leaves = torch.ones(gradients.shape[1], dtype=torch.bool)
    leaves[kept] = False
    return float(gradients.double()[:, leaves].sum(1).square().sum())


@pytest.mark.parametrize("num_kept", [0, 1, 5, 11, 12])
def test_rearranging_never_costs_more_and_keeps_as_many(num_kept):
    improved = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(30, 3, generator=generator)
        gradients = shared @ torch.randn(3, 12, generator=generator)
        gradients += 0.1 * torch.randn(30, 12, generator=generator)
        kept = gradients.square().sum(0).argsort(descending=True)[:num_kept].sort().values

        better = rearrange(gradients, kept)

        assert better.tolist() == sorted(set(better.tolist())) and len(better) == num_kept
        before, after = objective(gradients, kept), objective(gradients, better)
        assert after <= before * (1 + 1e-9)
        improved += after < 0.99 * before
    assert (improved > 10) == (num_kept in (1, 5))


def test_units_that_cancel_leave_together():
    # Alone, units 0 and 1 cost least; 1 and 2 together cost next to nothing.
    direction = torch.arange(1.0, 6.0)
    gradients = torch.stack([direction, direction, -1.1 * direction, direction.flip(0) * 2], 1)
    assert rearrange(gradients, torch.tensor([2, 3])).tolist() == [0, 3]
