"""Scores of turned queries and keys: predicted from moments, as they are over all tokens."""

from __future__ import annotations

import itertools

import pytest
import torch

from stat_prune.choosing.rotary_pairs import RotaryPairs

HEADS, PAIRS, LENGTH, TOKENS = 2, 4, 5, 7
FREQUENCIES = torch.tensor([1.0, 0.4, 0.1, 0.01], dtype=torch.float64)


def turned(x, angles):
    first, second = x.split(PAIRS, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos * first - sin * second, sin * first + cos * second], dim=-1)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(HEADS, TOKENS, 2 * PAIRS, generator=generator, dtype=torch.float64)
    keys = torch.randn(TOKENS, 2 * PAIRS, generator=generator, dtype=torch.float64) + 0.5
    return queries, keys


@pytest.fixture
def pairs(tokens):
    queries, keys = tokens
    mean = keys.mean(0)
    centred = keys - mean
    return RotaryPairs(
        queries.mT @ queries / TOKENS, centred.T @ centred / TOKENS, mean, FREQUENCIES, LENGTH
    )


def scores(queries, keys, chosen=None, turns=None):
    """Of each head, query token and position: of all keys, about their mean."""
    found = []
    for distance in range(LENGTH):
        key = turned(keys, -distance * FREQUENCIES)
        products = (queries[:, :, None] * key).unflatten(-1, (2, PAIRS)).sum(-2)
        quarter = torch.cat([-queries[..., PAIRS:], queries[..., :PAIRS]], dim=-1)
        others = (quarter[:, :, None] * key).unflatten(-1, (2, PAIRS)).sum(-2)
        if chosen is not None:
            a, b = turns[:, None, None, :, 0], turns[:, None, None, :, 1]
            products = a * products[..., chosen] + b * others[..., chosen]
        found.append(products.sum(-1))
    every = [torch.cat(found[: position + 1], dim=-1) for position in range(LENGTH)]
    return [one - one.mean(-1, keepdim=True) for one in every]


def error(queries, keys, chosen, turns):
    """Mean squared error over positions, tokens and keys, summed over the heads."""
    dense, few = scores(queries, keys), scores(queries, keys, chosen, turns)
    squares = [(a - b).square().mean((1, 2)) for a, b in zip(dense, few, strict=True)]
    return float(torch.stack(squares).mean(0).sum())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_errors_are_those_of_all_pairs_of_tokens_at_all_distances(tokens, pairs, count):
    kept, turns = pairs.kept(count), pairs.turns(count)
    found = error(*tokens, kept, turns)
    assert float(pairs.errors[:, count].sum()) == pytest.approx(found, rel=1e-6)


def test_turns_are_the_least_squares(tokens, pairs):
    kept, turns = pairs.kept(2), pairs.turns(2)
    least = error(*tokens, kept, turns)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        moved = turns + 0.01 * torch.randn(turns.shape, generator=generator, dtype=torch.float64)
        assert error(*tokens, kept, moved) > least


def test_the_pair_that_leaves_first_is_the_one_that_costs_least(tokens, pairs):
    errors = {}
    for gone in range(PAIRS):
        kept = torch.tensor([pair for pair in range(PAIRS) if pair != gone])
        turns = pairs._solve(kept)[1].unflatten(1, (2, -1)).mT
        errors[gone] = error(*tokens, kept, turns)
    stays = pairs.kept(PAIRS - 1).tolist()
    assert min(errors, key=errors.get) not in stays


def test_all_pairs_stay_as_they_are(pairs):
    turns = pairs.turns(PAIRS)
    expected = torch.tensor([1.0, 0.0], dtype=torch.float64).expand_as(turns)
    torch.testing.assert_close(turns, expected, rtol=0, atol=1e-5)
    assert float(pairs.errors[:, PAIRS].sum()) == 0.0


def test_errors_fall_with_every_pair(pairs):
    errors = pairs.errors.sum(0).tolist()
    assert all(before > after for before, after in itertools.pairwise(errors))
