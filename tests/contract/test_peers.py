"""The published methods to compare with keep the same promises."""

from __future__ import annotations

import pytest
import torch
from families import Family, output

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.methods import PEERS

# Defined for encoders with a task head alone: tests/peers/test_published.py.
WITH_A_TASK = ("fisher", "fisher-untuned", "kprune")
EVERY_PEER = pytest.mark.parametrize(
    "method", ["wanda-sp", "obs", *(peer for peer in PEERS if peer not in WITH_A_TASK)]
)


@EVERY_PEER
@pytest.mark.parametrize("target", [MACs(0.5, seq_length=16), Parameters(0.5)])
def test_peers_stay_within_the_budget_and_nearly_use_it_up(family: Family, prune, method, target):
    report = prune(family.build(), target, method=method).report
    measure = "block_macs" if isinstance(target, MACs) else "block_parameters"
    kept = getattr(report.after, measure) / getattr(report.before, measure)
    # A key/value head with its query heads is at most 12 % of the whole.
    assert 0.38 <= kept <= 0.5


@EVERY_PEER
def test_peers_reload_to_the_bit(family: Family, prune, inputs, tmp_path, method):
    result = prune(family.build(family.heads[1]), MACs(0.6), method=method)
    result.save(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(loaded, inputs), output(result.model, inputs))


@EVERY_PEER
def test_peers_that_keep_everything_change_nothing(family: Family, prune, inputs, method):
    model = family.build("ForSequenceClassification")
    result = prune(model, Parameters(1.0), method=method)
    difference = (output(result.model, inputs) - output(model, inputs)).abs().max()
    assert difference <= 1e-5
    assert all(row.kept == row.total for row in result.report.blocks)
