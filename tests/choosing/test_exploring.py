"""The search moves weights over a landscape of which the best point is known."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.choosing.budget.exploring import (
    MAX_STALE,
    Point,
    _moves,
    explore,
    in_vain,
    is_better,
)
from stat_prune.choosing.budget.whole_model import Measurement

#: Layers of two parts each, and what the blocks may keep together.
LAYERS, PARTS = [0, 0, 1, 1, 2, 2, 3, 3], ["heads", "neurons"] * 4
BUDGET = 80


class Landscape:
    """Stands for a `WholeModel`: squares of how far sizes are from the best ones, and noise."""

    def __init__(self, best, num_sequences: int = 12) -> None:
        generator = torch.Generator().manual_seed(5)
        shape = num_sequences, len(best)
        self.best = torch.tensor(best, dtype=torch.float64)
        self.scales = 1 + torch.rand(shape, generator=generator, dtype=torch.float64)
        self.passes = 0.0
        self.measured: list[tuple[int, ...]] = []

    def measure(self, choice) -> Measurement:
        sizes = torch.tensor(list(choice), dtype=torch.float64)
        return Measurement(tuple(choice), self.scales @ (sizes - self.best).square(), {})

    def measure_beside(self, choice, current, gives_up):
        self.measured.append(tuple(choice))
        found, half = self.measure(choice), len(self.scales) // 2
        self.passes += 0.5
        if gives_up(found.by_sequence[:half], current.by_sequence[:half]):
            return None
        self.passes += 0.5
        return found


def spread(weights) -> list[int]:
    """Sizes that are as their weights, and together the budget at most."""
    sizes = torch.stack([one.mean() for one in weights])
    return (BUDGET * sizes / sizes.sum()).floor().int().tolist()


def searched(whole, *, passes=200.0, seed=0, layers=LAYERS, parts=PARTS, spread=spread, **options):
    weights = [torch.ones(3, dtype=torch.float64) for _ in layers]
    begun = whole.measure(spread(weights))
    found = explore(
        Point(weights, begun),
        spread,
        whole,
        layers=layers,
        parts=parts,
        passes=passes,
        seed=seed,
        **options,
    )
    return begun, found


@settings(max_examples=30, deadline=None)
@given(
    best=st.lists(st.integers(0, 40), min_size=8, max_size=8),
    seed=st.integers(0, 2**32 - 1),
    passes=st.floats(0, 40),
)
def test_a_search_never_ends_at_a_worse_point_and_never_looks_twice(best, seed, passes):
    whole = Landscape(best)
    begun, found = searched(whole, passes=passes, seed=seed)
    assert found.point.measured.distance <= begun.distance
    assert (found.point.measured.distance < begun.distance) == (found.accepted > 0)
    # It stands where its weights lead.
    assert found.point.measured.choice == tuple(spread(found.point.weights))
    looked_at = [begun.choice, *whole.measured]
    assert len(set(looked_at)) == len(looked_at) == found.evaluations + 1
    assert whole.passes < passes + 1


@pytest.mark.parametrize("seed", range(3))
def test_a_spread_that_is_known_to_be_better_is_found(seed):
    best = [30, 20, 10, 10, 4, 2, 2, 2]
    begun, found = searched(Landscape(best), seed=seed)
    assert found.point.measured.distance < 0.1 * begun.distance
    first, *_, last = found.point.measured.choice
    assert first > 3 * last


def test_the_same_seed_leads_to_the_same_weights():
    (_, one), (_, other), (_, else_where) = (
        searched(Landscape([30, 20, 10, 10, 4, 2, 2, 2]), seed=seed, passes=30)
        for seed in (7, 7, 8)
    )
    assert one.evaluations == other.evaluations and one.accepted == other.accepted
    for first, second in zip(one.point.weights, other.point.weights, strict=True):
        assert torch.equal(first, second)
    assert one.point.measured.choice != else_where.point.measured.choice


def test_between_a_single_block_and_nothing_there_is_no_move():
    whole = Landscape([3])
    _, found = searched(whole, layers=[0], parts=["heads"])
    assert (found.evaluations, found.accepted, whole.measured) == (0, 0, [])


def test_experts_of_one_layer_are_no_blocks_to_move_between():
    assert next(_moves([1, 1, 1], ["experts"] * 3, np.random.default_rng(0)), None) is None


def test_a_search_ends_where_every_move_leads_back():
    calls = []

    def fixed(_weights):
        calls.append(0)
        return [10] * 8

    whole = Landscape([20] * 8)
    _, found = searched(whole, spread=fixed)
    assert found.evaluations == 0
    assert len(calls) == 1 + MAX_STALE


def test_every_evaluation_is_told():
    told = []
    _, found = searched(Landscape([20] * 8), passes=20, advance=lambda: told.append(0))
    assert len(told) == found.evaluations > 0


@given(
    blocks=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["heads", "neurons", "cross"])), min_size=1
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_move_is_of_neighbouring_layers_in_one_direction_and_never_of_all_blocks(blocks, seed):
    layers, parts = [layer for layer, _ in blocks], [part for _, part in blocks]
    every = sorted(set(layers))
    for move in islice(_moves(layers, parts, np.random.default_rng(seed)), 40):
        moved = [number for number, sign in enumerate(move) if sign]
        assert set(move) in ({0, 1}, {0, -1})
        assert 0 < len(moved) < len(blocks)
        own = {parts[number] for number in moved}
        lines = sorted({every.index(layers[number]) for number in moved})
        if len(own) > 1:  # all parts: whole layers, side by side
            assert lines == list(range(lines[0], lines[-1] + 1))
        assert len(own) == 1 or set(moved) == {
            number for number, layer in enumerate(layers) if every.index(layer) in lines
        }
        assert lines[-1] - lines[0] < max(len(every) // 2, 1)


def numbers(count: int):
    values = st.floats(-100, 100, width=32)
    return st.lists(values, min_size=count, max_size=count).map(
        lambda found: torch.tensor(found, dtype=torch.float64)
    )


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(numbers(n), numbers(n))), st.floats(0, 3))
def test_of_two_distances_at_most_one_is_better(pair, errors):
    found, other = pair
    assert not (is_better(found, other, errors=errors) and is_better(other, found, errors=errors))
    assert not is_better(found, found, errors=errors)
    # What is better by so many errors is better by fewer.
    assert not is_better(found, other, errors=errors) or is_better(found, other, errors=0.0)


def test_a_gain_counts_against_its_noise():
    other = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    everywhere, by_chance = other - 0.1, other - torch.tensor([0.9, -0.5, 0.5, -0.5]).double()
    assert is_better(everywhere, other, errors=10.0)
    assert is_better(by_chance, other, errors=0.0)
    assert not is_better(by_chance, other, errors=1.0)


def test_what_is_worse_beyond_noise_is_given_up_and_what_is_no_worse_is_not():
    current = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert in_vain(current + 0.1, current)
    assert not in_vain(current, current)
    assert not in_vain(current - 0.1, current)
    assert not in_vain(current + torch.tensor([1.0, -0.9, 0.0]).double(), current)
