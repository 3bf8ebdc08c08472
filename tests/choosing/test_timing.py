"""A model timed by a clock that is known."""

from __future__ import annotations

import pytest
import torch
from clocks import PER_CALL, PER_MAC
from transformers import BertConfig, BertModel

from stat_prune.families import find_blocks
from stat_prune.measuring.timing import MAX_ROUNDS, MIN_ROUNDS, MULTIPLE, compare, time_model
from stat_prune.surgery.cut import cut_copy

BATCH_SIZE, SEQ_LENGTH = 2, 12
TOKENS = BATCH_SIZE * SEQ_LENGTH
LAYERS = 2
#: Query, key, value, attention output and two of the feed-forward network; and the pooler.
CALLS = 6 * LAYERS + 1


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=48,
        )
    ).eval()


@pytest.fixture
def timed(model, linear_clock):
    blocks = find_blocks(model)
    return time_model(
        model, blocks[:3], blocks[3:], batch_size=BATCH_SIZE, seq_length=SEQ_LENGTH, round_to=1
    )


def seconds(model) -> float:
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    weights = {id(m): m.weight.numel() for m in layers}
    pooler = weights.pop(id(model.pooler.dense))
    return CALLS * PER_CALL + PER_MAC * (TOKENS * sum(weights.values()) + BATCH_SIZE * pooler)


def test_the_most_that_can_be_reached_keeps_one_head_few_neurons_and_what_is_untouched(
    model, timed
):
    heads, neurons, second_heads, _ = find_blocks(model)
    least = cut_copy(model, [(heads, 1, 1), (neurons, MULTIPLE, MULTIPLE), (second_heads, 1, 1)])
    assert timed.least.speed_up == pytest.approx(seconds(model) / seconds(least))
    assert timed.batch["input_ids"].shape == (BATCH_SIZE, SEQ_LENGTH)
    assert timed.round_to == MULTIPLE


def test_what_blocks_cost_adds_up_to_the_time_between_the_least_and_the_dense_model(model, timed):
    blocks = find_blocks(model)
    total = sum(timed.cost(block, block.num_units, block.num_groups) for block in blocks)
    saved = timed.least.dense_seconds - timed.least.pruned_seconds
    assert total == pytest.approx(saved)
    assert timed.cost(blocks[3], 8, 8) == timed.cost(blocks[3], 48, 48) == 0


def test_sizes_are_timed_on_a_copy_and_the_dense_model_is_remembered_when_it_is_cut(model, timed):
    heads = find_blocks(model)[0]
    found = timed.compare_sizes([(heads, 2, 2)])
    half = cut_copy(model, [(heads, 2, 2)])
    assert found.speed_up == pytest.approx(seconds(model) / seconds(half))
    assert find_blocks(model)[0].num_units == 4
    dense = seconds(model)
    model.encoder.layer[0] = half.encoder.layer[0]
    assert timed.compare(model).speed_up == pytest.approx(dense / seconds(model))


def test_a_clock_without_noise_needs_the_fewest_rounds_and_noise_needs_more(model, linear_clock):
    batch = {"input_ids": torch.zeros(1, 4).long()}
    half = cut_copy(model, [(block, 2, 2) for block in find_blocks(model)])
    quiet = compare(model, half, batch)
    linear_clock.noise = 1.0
    noisy = compare(model, half, batch)
    assert quiet.rounds == MIN_ROUNDS
    assert quiet.low == pytest.approx(quiet.high)
    assert quiet.rounds < noisy.rounds <= MAX_ROUNDS
    assert noisy.low < noisy.speed_up < noisy.high
    assert noisy.speed_up == pytest.approx(quiet.speed_up, rel=0.05)


def test_one_thread_of_a_cpu_is_timed_by_its_own_clock_and_several_by_the_clock_on_the_wall(
    model, linear_clock, monkeypatch
):
    batch = {"input_ids": torch.zeros(1, 4).long()}
    assert compare(model, model, batch).clock == "thread"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert compare(model, model, batch).clock == "wall"
