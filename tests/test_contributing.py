"""The examples of CONTRIBUTING.md, as they stand."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_bert

import stat_prune
from stat_prune import MACs
from stat_prune.errors import TargetError

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOKENS = torch.randint(5, 60, (40, 12), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": tokens} for tokens in TOKENS]
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["criterion", "baseline"])
def test_the_example_prunes_a_model_to_the_target(example):
    names: dict = {}
    exec(example, names)
    results = [
        stat_prune.prune(
            tiny_bert(), ROWS, target=MACs(0.6), method=method, progress=False, effort="fast"
        )
        for method in (names["method"], "stat")
    ]
    ours, default = (result.report for result in results)
    assert ours.after.block_macs <= 0.6 * ours.before.block_macs
    assert results[0].plan != results[1].plan
    assert "method" in ours.settings and "0x" not in ours.settings["method"]
    assert default.settings["method"] == "stat"


def test_a_baseline_that_reaches_something_else_is_refused():
    names: dict = {}
    exec(EXAMPLES[1], names)

    def third(budget):
        return dataclasses.replace(budget, target=MACs(0.3))

    half = stat_prune.Baseline("half", lambda run, budget: names["loudest"](run, third(budget)))
    with pytest.raises(TargetError, match="was reached"):
        stat_prune.prune(tiny_bert(), ROWS, target=MACs(0.6), method=half, progress=False)
