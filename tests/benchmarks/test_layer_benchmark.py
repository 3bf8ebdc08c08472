"""The benchmark of pruning layer by layer."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

import layer_at_a_time as benchmark

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def test_a_run_is_recorded_with_what_the_model_and_its_statistics_take(tmp_path):
    benchmark.save_model(tmp_path / "model", SHAPE, num_layers=2)
    # What the tests before have taken of memory at most is no part of this (Linux).
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

    record = benchmark.prune(tmp_path / "model", 12, 10, 0.7, "stat")

    assert record["layers"] == 2
    assert 0.6 < record["kept"] <= 0.7
    assert record["Gram matrices of a layer"] == 8 * (32**2 + 48**2)
    assert record["states"] == 12 * 10 * 32 * 2
    assert record["predicted peak"] == pytest.approx(record["peak"], rel=0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    table = benchmark.markdown([record, record | {"layers": 4, "seconds": 3 * record["seconds"]}])
    assert "| 2 | 12 x 10 | 1.00 |" in table and "| 4 | 12 x 10 | 3.00 |" in table


def test_the_figure_shows_time_relative_to_the_first_run():
    records = [
        {"layers": 2, "samples": 4, "tokens": 8, "seconds": 2.0},
        {"layers": 4, "samples": 4, "tokens": 8, "seconds": 3.0},
    ]
    by_layers, by_tokens = benchmark.drawn(records, records).axes
    assert by_layers.lines[0].get_xydata().tolist() == [[2, 1], [4, 1.5]]
    assert by_tokens.lines[0].get_xydata().tolist() == [[32, 1], [32, 1.5]]
