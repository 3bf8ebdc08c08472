"""The table against a clock that is known, and its cache."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from clocks import PER_CALL, PER_MAC
from toys import head_block, neuron_block
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from stat_prune.families import find_blocks
from stat_prune.measuring import latency_cache
from stat_prune.measuring.latency_cache import cache_folder, cached_table
from stat_prune.measuring.latency_table import LatencyTable, head_sizes, measure_layer, neuron_sizes

TABLE = LatencyTable(
    heads=((1, 1, 0.5), (2, 1, 0.75), (2, 2, 1.0), (4, 2, 2.0)),
    neurons=((8, 0.5), (16, 1.0), (64, 2.5)),
)
TOKENS = 6
SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def bert():
    torch.manual_seed(0)
    return BertModel(BertConfig(**SMALL)).eval()


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)).eval()


def test_sizes_of_heads_are_all_that_surgery_can_make():
    assert head_sizes(head_block(3, 3, 2, 5)) == [(1, 1), (2, 2), (3, 3)]
    assert head_sizes(head_block(4, 2, 2, 5)) == [(1, 1), (2, 2), (2, 1), (4, 2)]
    assert head_sizes(head_block(2, 2, 2, 5), remove=True) == [(0, 0), (1, 1), (2, 2)]


def test_no_size_is_zero_where_a_block_cannot_be_removed():
    heads, neurons = head_block(2, 2, 2, 5), neuron_block(48, 4, bias=True)
    assert neuron_sizes(neurons, 8, remove=True) == [0, *neuron_sizes(neurons, 8)]
    heads, neurons = (dataclasses.replace(one, removable=False) for one in (heads, neurons))
    assert head_sizes(heads, remove=True) == head_sizes(heads)
    assert neuron_sizes(neurons, 8, remove=True) == neuron_sizes(neurons, 8)


@pytest.mark.parametrize(("size", "multiple"), [(1536, 8), (11008, 64), (48, 8), (1013, 8), (5, 8)])
def test_sizes_of_neurons_go_from_the_least_to_the_whole_in_multiples(size, multiple):
    sizes = neuron_sizes(neuron_block(size, 4, bias=True), multiple)
    assert sizes[0] == min(multiple, size)
    assert sizes[-1] == size
    assert sizes == sorted(set(sizes))
    assert all(one % multiple == 0 for one in sizes[:-1])
    assert len(sizes) <= 14


def test_between_measured_numbers_of_neurons_time_is_linear_and_counts_from_the_quickest():
    assert TABLE.extra_seconds("neurons", 8, 8) == 0
    assert TABLE.extra_seconds("neurons", 16, 16) == 0.5
    assert TABLE.extra_seconds("neurons", 40, 40) == pytest.approx(1.25)
    assert TABLE.extra_seconds("heads", 2, 1) == 0.25
    assert TABLE.extra_seconds("heads", 4, 2) == 1.5


def test_a_smaller_size_that_takes_longer_costs_more_and_nothing_costs_less_than_nothing():
    odd = dataclasses.replace(TABLE, neurons=((8, 0.9), (16, 0.4), (64, 2.0)))
    assert odd.extra_seconds("neurons", 8, 8) == pytest.approx(0.5)
    assert odd.extra_seconds("neurons", 16, 16) == 0


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("build", [bert, llama])
def test_a_layer_is_timed_at_every_size_of_each_block(build, remove, linear_clock):
    model = build()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heads, neurons = find_blocks(model)[2:]
    batch = {"input_ids": torch.arange(TOKENS)[None]}
    table = measure_layer(model, heads, neurons, batch, round_to=8, remove=remove)

    def seconds(num_heads: int, num_groups: int, num_neurons: int) -> float:
        # Without heads there is nothing to project.
        calls = (len(heads.producers) if num_heads else 0) + len(neurons.producers) + 2
        # Attention's own products are no linear layers, so this clock does not count them.
        attention = 2 * TOKENS**2 * heads.unit_size * num_heads
        macs = heads.macs(num_heads, num_groups, TOKENS) - attention
        macs += neurons.macs(num_neurons, num_neurons, TOKENS)
        return calls * PER_CALL + PER_MAC * macs

    assert [row[:2] for row in table.heads] == head_sizes(heads, remove)
    assert [row[0] for row in table.neurons] == [0] * remove + [8, 16, 24, 32, 40, 48]
    for units, groups, measured in table.heads:
        assert measured == pytest.approx(seconds(units, groups, 0 if remove else 8))
    for units, measured in table.neurons:
        assert measured == pytest.approx(seconds(0, 0, units) if remove else seconds(1, 1, units))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache on disk and in memory; what it holds, and a way to forget the memory."""
    monkeypatch.setenv("STAT_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency_cache, "_measured", {})
    return tmp_path / "cache"


def once() -> LatencyTable:
    return TABLE


def never() -> LatencyTable:
    raise AssertionError("measured again")


def test_a_table_is_measured_once_a_process_and_once_a_machine(cache):
    what = {"device": "a cpu", "batch": [1, 32]}
    assert cached_table(what, once) == TABLE
    assert cached_table(what, never) == TABLE
    latency_cache._measured.clear()
    assert cached_table(what, never) == TABLE
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["neurons"] == [[8, 0.5], [16, 1.0], [64, 2.5]]


def test_whatever_times_depend_on_has_a_table_of_its_own(cache):
    other = dataclasses.replace(TABLE, neurons=((8, 1.0), (64, 9.0)))
    assert cached_table({"threads": 1}, once) == TABLE
    assert cached_table({"threads": 2}, lambda: other) == other
    latency_cache._measured.clear()
    assert cached_table({"threads": 1}, never) == TABLE
    assert cached_table({"threads": 2}, never) == other


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "other"}', '{"heads": [[1, 2]]}'])
def test_a_damaged_file_is_measured_again_and_replaced(cache, content):
    cached_table({"threads": 1}, once)
    (file,) = cache.iterdir()
    file.write_text(content)
    latency_cache._measured.clear()
    assert cached_table({"threads": 1}, once) == TABLE
    latency_cache._measured.clear()
    assert cached_table({"threads": 1}, never) == TABLE


def test_a_cache_that_cannot_be_written_is_done_without(cache):
    cache.write_text("a file where the folder should be")
    assert cached_table({"threads": 1}, once) == TABLE


def test_the_cache_is_in_the_usual_place_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("STAT_PRUNE_CACHE", "")
    assert cache_folder() is None
    monkeypatch.delenv("STAT_PRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "stat_prune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "stat_prune"
