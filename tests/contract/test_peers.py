"""The published methods to compare with keep the same promises."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, Family, output

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.errors import ModelError
from stat_prune.settings.methods import BASELINES

# Of encoders: tests/baselines/test_published.py.
ENCODERS_ONLY = ("fisher", "fisher-untuned", "kprune", "kcm", "kcm-untuned")
#: Layouts that differ in what a method touches; the other families differ in names.
LABELS = ("Bert", "DistilBert", "Llama", "GPT2", "Falcon-grouped", "Olmo2", "Mixtral")
METHODS = ["wanda-sp", "obs", *(peer for peer in BASELINES if peer not in ENCODERS_ONLY)]
CASES = [
    (family, method)
    for family in FAMILIES
    for method in METHODS
    if family.label in LABELS and not (family.name == "Mixtral" and method in BASELINES)
]
EVERY_PEER = pytest.mark.parametrize(
    "case", CASES, ids=[f"{family.label}-{method}" for family, method in CASES]
)


@EVERY_PEER
@pytest.mark.parametrize("target", [MACs(0.5, seq_length=16), Parameters(0.5)])
def test_peers_stay_within_the_budget_and_nearly_use_it_up(case: tuple[Family, str], prune, target):
    family, method = case
    report = prune(family.build(), target, method=method).report
    measure = "block_macs" if isinstance(target, MACs) else "block_parameters"
    kept = getattr(report.after, measure) / getattr(report.before, measure)
    # A key/value head with its query heads is at most 12 % of the whole.
    assert 0.38 <= kept <= 0.5


@EVERY_PEER
def test_peers_reload_to_the_bit(case: tuple[Family, str], prune, inputs, tmp_path):
    family, method = case
    result = prune(family.build(family.heads[1]), MACs(0.6), method=method)
    result.save(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(loaded, inputs), output(result.model, inputs))


@EVERY_PEER
def test_peers_that_keep_everything_change_nothing(case: tuple[Family, str], prune, inputs):
    family, method = case
    model = family.build(family.classifier)
    result = prune(model, Parameters(1.0), method=method)
    difference = (output(result.model, inputs) - output(model, inputs)).abs().max()
    assert difference <= 1e-5
    assert all(row.kept == row.total for row in result.report.blocks)


@pytest.mark.parametrize("method", [method for method in METHODS if method in BASELINES])
def test_peers_that_give_every_block_its_own_size_refuse_experts(prune, method):
    (mixtral,) = (family for family in FAMILIES if family.label == "Mixtral")
    with pytest.raises(ModelError, match="experts of a layer"):
        prune(mixtral.build(), MACs(0.6), method=method)
