"""The order in which training sees its examples."""

from __future__ import annotations

import random

import pytest

from stat_prune.data.training_data import BatchesOfOneLength

SIZE = 8


def lengths_of(count: int) -> list[int]:
    return random.Random(0).choices(range(3, 60), k=count)


def padded_tokens(lengths: list[int], order: list[int]) -> int:
    """Of an epoch in this order."""
    batches = [order[start : start + SIZE] for start in range(0, len(order), SIZE)]
    return sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)


@pytest.mark.parametrize("count", [5, 48, 60, 1000])
def test_an_epoch_has_every_example_once(count):
    sampler = BatchesOfOneLength(lengths_of(count), SIZE, seed=0)
    assert sorted(sampler) == list(range(count))
    assert len(sampler) == count


@pytest.mark.parametrize("count", [60, 1000])
def test_few_examples_are_padded_as_little_as_many(count):
    lengths = lengths_of(count)
    order = list(BatchesOfOneLength(lengths, SIZE, seed=0))
    shuffled = random.Random(1).sample(range(count), count)
    assert padded_tokens(lengths, order) < 1.2 * sum(lengths)
    assert padded_tokens(lengths, shuffled) > 1.5 * sum(lengths)


def test_a_few_steps_see_short_sequences_and_long_ones():
    lengths = lengths_of(1000)
    seen = [lengths[i] for i in list(BatchesOfOneLength(lengths, SIZE, seed=0))[: 20 * SIZE]]
    assert sum(seen) / len(seen) == pytest.approx(sum(lengths) / len(lengths), rel=0.2)
    assert min(seen) < 10 and max(seen) > 50


def test_the_order_is_of_seed_and_epoch():
    first, second = (BatchesOfOneLength(lengths_of(100), SIZE, seed=3) for _ in range(2))
    start = list(first)
    assert start == list(second)
    second.set_epoch(1)
    assert list(second) != start
    second.set_epoch(0)
    assert list(second) == start
