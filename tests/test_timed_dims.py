"""Speed-ups to which dimensions inside heads contribute where they pay."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from clocks import PER_CALL, PER_MAC
from test_head_dims import built, head_blocks, output
from test_searching import pruned
from tiny_models import SIZES, tiny_bert, tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

import stat_prune
from stat_prune import Latency, Speedup
from stat_prune.families import find_blocks
from stat_prune.measuring import timing
from stat_prune.measuring.latency_table import LatencyTable, dims_sizes, measure_layer
from stat_prune.measuring.timing import multiples_of_dims

BATCH = {"batch_size": 2, "seq_length": 12}
SIZE, HEADS = 8, 4
TABLE = LatencyTable(
    heads=((1, 1, 1.0), (4, 4, 4.0)),
    neurons=((8, 0.5), (16, 1.0)),
    dims=((2, 4, 1.0), (2, 8, 2.0), (8, 4, 3.0), (8, 8, 4.0)),
)


def qwen3():
    sizes = SIZES | {"num_key_value_heads": 2, "head_dim": SIZE}
    return built(Qwen3ForCausalLM, lambda **_: Qwen3Config(**sizes))


def gpt2():
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": HEADS, "n_inner": 48}
    return built(GPT2LMHeadModel, lambda **_: GPT2Config(**sizes))


MODELS = {"Bert": tiny_bert, "Llama": tiny_llama, "Qwen3": qwen3, "GPT2": gpt2}


def test_seconds_saved_are_linear_between_sizes_and_follow_the_heads():
    saved = TABLE.seconds_saved(4, [1, 2, 5, 8], [4, 6, 8])
    expected = [[3, 2.5, 2], [3, 2.5, 2], [2, 1.5, 1], [1, 0.5, 0]]
    np.testing.assert_allclose(saved, expected)
    np.testing.assert_allclose(TABLE.seconds_saved(2, [2], [4]), [[1.5]])


def test_a_table_is_read_as_it_was_written_with_dimensions_and_without():
    lists = json.loads(json.dumps(TABLE.to_lists()))
    assert LatencyTable.from_lists(lists) == TABLE
    alone = dataclasses.replace(TABLE, dims=())
    assert alone.to_lists().keys() == {"heads", "neurons"}
    assert LatencyTable.from_lists(alone.to_lists()) == alone


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_what_narrower_heads_take(name, linear_clock):
    model = MODELS[name]()
    heads, neurons = (block for block in find_blocks(model) if block.layer == 1)
    multiples = multiples_of_dims(model, heads, 1)
    assert multiples == {"Llama": (2, 1), "Qwen3": (SIZE, 1)}.get(name, (1, 1))
    ids = torch.full((1, 12), 7)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    table = measure_layer(model, heads, neurons, batch, round_to=8, multiples=multiples)
    grid = dims_sizes(heads, multiples)
    assert [pair[:2] for pair in table.dims] == grid
    assert len(grid) == (4 if name == "Qwen3" else 16)
    for query_key, value, seconds in table.dims:
        narrow = heads.with_dims(query_key, value)
        weights = narrow.parameters(heads.num_units, heads.num_groups)
        counts = {"unit": heads.num_units, "group": heads.num_groups}
        weights -= heads.consumer_bias * heads.output_size
        weights -= sum(
            size * counts[part]
            for one in narrow.producers
            if one.bias
            for part, size in zip(one.parts, one.sizes(value), strict=True)
        )
        weights += 8 * (len(neurons.producers) + 1) * heads.output_size
        calls = len(heads.producers) + len(neurons.producers) + 2
        assert seconds == pytest.approx(calls * PER_CALL + 12 * weights * PER_MAC)
    without = measure_layer(model, heads, neurons, batch, round_to=8)
    for known, alone in ((table.heads, without.heads), (table.neurons, without.neurons)):
        np.testing.assert_allclose(known, alone)
    assert not without.dims


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("crowding", [0.0, 0.02])
def test_the_speed_up_asked_for_is_measured(name, crowding, linear_clock, tmp_path):
    linear_clock.crowding = crowding
    model = MODELS[name]()
    result = pruned(model, target=Speedup(1.5, **BATCH), head_dims=True, effort="fast")
    report = result.report
    assert report.speed.speed_up == pytest.approx(1.5, rel=0.06)
    whole, *narrowed = report.head_dims.distances
    assert whole == "0.667"
    assert narrowed
    result.save(tmp_path / "out")
    assert torch.equal(output(stat_prune.load(tmp_path / "out")), output(result.model))


def test_dimensions_are_taken_where_they_leave_the_output_nearer(linear_clock):
    """Of queries and values that are of low rank, most dimensions cost time alone."""
    model = tiny_bert()
    for layer in model.encoder.layer:
        for linear in (layer.attention.self.query, layer.attention.self.value):
            linear.bias.data.zero_()
            for head in linear.weight.data.split(SIZE):
                head.copy_((torch.rand(SIZE, 2) - 0.5) @ torch.randn(2, SIZES["hidden_size"]))
    result = pruned(model, target=Speedup(1.25, **BATCH), head_dims=True, effort="fast")
    found = result.report.head_dims
    assert found.taken != "0.8"
    assert found.distances[found.taken] < 0.5 * found.distances["0.8"]
    blocks = head_blocks(result.model)
    assert any(max(block.query_key_size, block.unit_size) < SIZE for block in blocks)
    assert result.report.speed.speed_up == pytest.approx(1.25, rel=0.06)


def test_dimensions_that_save_no_time_stay(linear_clock, monkeypatch):
    measured = timing.measure_layer

    def padded(*args, **options):
        """Heads that take as long with fewer dimensions, as where a kernel fills them up."""
        table = measured(*args, **options)
        whole = table.dims[-1][-1]
        return dataclasses.replace(table, dims=tuple((*one[:2], whole) for one in table.dims))

    monkeypatch.setattr(timing, "measure_layer", padded)
    target = Latency(0.7, batch_size=3, seq_length=12)
    result = pruned(target=target, head_dims=True, effort="fast")
    assert list(result.report.head_dims.distances) == ["0.7"]
    assert all(block.unit_size == SIZE for block in head_blocks(result.model))
