from __future__ import annotations

import time

import torch
from tiny_models import tiny_bert
from transformers import BertModel

from stat_prune.measuring.latency import median_latencies


def test_models_take_turns_and_the_median_of_the_counted_rounds_is_reported(monkeypatch):
    # by a clock that stands still but for the models: 100 in the warm-up, then these
    durations = {"a": [100, 1, 9, 2], "b": [100, 5, 4, 30]}
    calls: list[str] = []
    now = 0.0

    class Timed(BertModel):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            nonlocal now
            calls.append(self.label)
            now += durations[self.label].pop(0)
            return input_ids

    models = [tiny_bert(Timed), tiny_bert(Timed)]
    models[0].label, models[1].label = "a", "b"
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    medians = median_latencies(models, {"input_ids": torch.zeros(1, 2).long()}, rounds=3)

    assert medians == [2, 5]
    assert [set(turn) for turn in zip(calls[::2], calls[1::2], strict=True)] == [{"a", "b"}] * 4
