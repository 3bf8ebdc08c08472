"""The examples of CONTRIBUTING.md, as they stand."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
from hand_pruned import pruned
from tiny_models import tiny_bert

import stat_prune
from stat_prune import MACs
from stat_prune.errors import TargetError
from stat_prune.families import architecture_of
from stat_prune.families.encoders import distilbert

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOKENS = torch.randint(5, 60, (40, 12), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": tokens} for tokens in TOKENS]
FAMILY, CRITERION, BASELINE = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_family_is_the_file_of_the_package_and_describes_its_models():
    names: dict = {}
    exec(FAMILY, names)
    assert names["DISTILBERT"] == architecture_of(pruned("DistilBertModel"))
    assert FAMILY == Path(inspect.getfile(distilbert)).read_text(encoding="utf-8")
    assert len(FAMILY.splitlines()) < 40


@pytest.mark.parametrize("example", [CRITERION, BASELINE], ids=["criterion", "baseline"])
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
    exec(BASELINE, names)

    def third(budget):
        return dataclasses.replace(budget, target=MACs(0.3))

    half = stat_prune.Baseline("half", lambda run, budget: names["loudest"](run, third(budget)))
    with pytest.raises(TargetError, match="was reached"):
        stat_prune.prune(tiny_bert(), ROWS, target=MACs(0.6), method=half, progress=False)
