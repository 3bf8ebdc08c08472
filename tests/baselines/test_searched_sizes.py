"""Published methods with the sizes of another: budget="searched" changes these and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoders import budget_for, build, ready, rows
from hand_pruned import build as build_decoder

import stat_prune
from stat_prune import MACs, Parameters, Tolerance
from stat_prune.baselines import kprune
from stat_prune.baselines.flap import _Fluctuation
from stat_prune.baselines.layer_inputs import LayerwiseModel, dense_sums, reconstruction_moments
from stat_prune.errors import ModelError, SettingsError, TargetError
from stat_prune.families import find_blocks
from stat_prune.measuring.collectors import collect_moments
from stat_prune.pipeline import loaded_model

IDS = [{"input_ids": row} for row in torch.randint(1, 50, (60, 12), generator=torch.manual_seed(2))]


def prune(model, method, target, data=None, **settings):
    settings = {"batch_size": 16, "progress": False, "seed": 1} | settings
    data = rows() if data is None else data
    return stat_prune.prune(model, data, target=target, method=method, **settings)


def sizes(result):
    return [(row.layer, row.kind, row.kept, row.kept_groups) for row in result.report.blocks]


@pytest.mark.parametrize(
    ("method", "make", "target", "data"),
    [
        ("kprune", build, MACs(0.5), None),
        ("flap", build, MACs(0.5), None),
        ("flap", lambda: build_decoder("LlamaForCausalLM"), Parameters(0.6), IDS),
        (
            "flap",
            lambda: build_decoder("LlamaForCausalLM"),
            MACs({"heads": 0.5, "neurons": 0.7}),
            IDS,
        ),
    ],
    ids=["kprune", "flap", "flap, shared keys", "flap, by kind"],
)
@pytest.mark.parametrize("effort", ["fast", "normal"])
def test_sizes_and_search_are_those_of_stat_and_units_are_not(method, make, target, data, effort):
    ours = prune(make(), "stat", target, data, effort=effort)
    theirs = prune(make(), method, target, data, effort=effort, budget="searched")
    assert sizes(theirs) == sizes(ours)
    assert theirs.report.search == ours.report.search
    assert theirs.plan != ours.plan
    assert theirs.report.settings["budget"] == "searched"
    alone = prune(make(), method, target, data, effort=effort)
    assert alone.report.search is None and sizes(alone) != sizes(ours)


def test_a_family_searches_for_all_sizes_once_and_gives_each_its_own(monkeypatch):
    collected = []

    def counted(*args, **kwargs):
        collected.append(1)
        return collect_moments(*args, **kwargs)

    monkeypatch.setattr(loaded_model, "collect_moments", counted)
    targets = [MACs(0.7), MACs(0.4)]
    settings = {"batch_size": 16, "progress": False, "effort": "fast", "budget": "searched"}
    found = stat_prune.prune_family(build(), rows(), targets=targets, method="flap", **settings)
    assert len(collected) == 1
    for target, one in zip(targets, found, strict=True):
        assert sizes(one) == sizes(prune(build(), "stat", target, effort="fast", seed=0))


def test_flap_keeps_the_units_that_score_best():
    """Of each block; with shared keys, the best key/value heads and the best queries of each."""
    model = build_decoder("LlamaForCausalLM")
    result = prune(model, "flap", Parameters(0.6), IDS, budget="searched")
    with ready(model, IDS, seed=1) as run:
        moments = collect_moments(run.model, run.blocks, run.calibration.batches)
        for block in run.blocks:
            weight = model.base_model.get_submodule(block.consumer).weight.detach().double()
            scores = _Fluctuation.of(block, moments[block.name], weight).channels.numpy()
            kept = torch.tensor(result.plan[block.name])
            groups = sorted({int(unit) // block.units_per_group for unit in kept})
            by_group = scores.reshape(block.num_groups, block.units_per_group, -1).mean(2)
            best = np.argsort(-by_group.mean(1))[: len(groups)]
            assert groups == sorted(best.tolist())
            count = len(kept) // len(groups)
            for group in groups:
                best = np.argsort(-by_group[group])[:count] + group * block.units_per_group
                mine = [int(unit) for unit in kept if int(unit) // block.units_per_group == group]
                assert mine == sorted(best.tolist())


def test_biases_that_flap_adds_come_on_top_of_the_sizes():
    """Which are those of a method that adds none."""
    model = build_decoder("LlamaForCausalLM")
    ours, theirs = (
        prune(model, method, Parameters(0.6), IDS, budget="searched").report
        for method in ("stat", "flap")
    )
    added = sum(
        block.output_size
        for block, row in zip(find_blocks(model), theirs.blocks, strict=True)
        if row.kept < row.total
    )
    assert added and theirs.after.parameters == ours.after.parameters + added


@torch.no_grad()
def test_kprune_keeps_what_knows_most_and_solves_for_its_weight():
    """Sublayer by sublayer, in the model as it is by then."""
    model = build(num_labels=3)
    with ready(model) as run:
        budget = budget_for(run, MACs(0.5))
        wanted = {
            block.name: (max(block.num_units - 1 - number, 1),) * 2
            for number, block in enumerate(run.blocks)
        }
        plans = kprune.plan(run, budget, lambda: wanted)
        dense = LayerwiseModel(run.model, run.calibration.batches)
        predictions, _ = kprune._collect(run, dense)
        pruned = LayerwiseModel(build(num_labels=3), run.calibration.batches)
        knowledge = kprune._Knowledge(predictions)
        for number, block in enumerate(run.blocks):
            if block.layer > pruned.layer:
                pruned.advance()
            if block.layer == dense.layer:
                sums = dense_sums(dense, [one for one in run.blocks if one.layer == block.layer])
            known = knowledge.of(pruned, [block])[block.name].reshape(block.num_units, -1).mean(1)
            units = plans[number].folded.units
            best = known.topk(wanted[block.name][0]).indices.sort().values
            assert torch.equal(units, best)
            moments = reconstruction_moments(pruned, block, sums[block.name], units)
            gram, cross, _ = moments.normal_equations()
            expected = torch.linalg.solve(gram, cross).T
            torch.testing.assert_close(plans[number].folded.weight, expected, rtol=1e-3, atol=1e-4)
            kprune.mask_block(pruned.model, block, units, plans[number].folded.weight)


@pytest.mark.parametrize(
    ("make", "method", "target", "error", "message"),
    [
        (lambda: build("Electra", "Model"), "kprune", MACs(0.5), ModelError, "task head"),
        (lambda: build("Bert", "Model"), "kprune", MACs(0.5), ModelError, "task head"),
        (build, "kprune", MACs({"heads": 0.5}), TargetError, "one fraction"),
        (build, "flap", Tolerance(0.1), TargetError, "takes a fraction"),
    ],
    ids=["decoder", "no head", "by kind", "tolerance"],
)
def test_what_a_method_refuses_it_refuses_before_the_search(
    make, method, target, error, message, monkeypatch
):
    monkeypatch.setattr(loaded_model, "collect_moments", None)
    with pytest.raises(error, match=message):
        prune(make(), method, target, budget="searched")


def test_an_objective_that_the_output_has_not_is_refused_before_the_search(monkeypatch):
    monkeypatch.setattr(loaded_model, "collect_moments", None)
    with pytest.raises(SettingsError, match="objective"):
        prune(build("Bert", "Model"), "flap", MACs(0.5), budget="searched", objective="logits")


def test_a_method_of_ones_own_says_whether_it_takes_sizes():
    def by_size(run, budget, search=None):
        assert search is not None
        return kprune.plan(run, budget, search)

    ours = prune(build(), "stat", MACs(0.5))
    takes = stat_prune.Baseline("by size", by_size, takes_sizes=True)
    assert sizes(prune(build(), takes, MACs(0.5), budget="searched")) == sizes(ours)
    with pytest.raises(SettingsError, match="spreads its budget itself"):
        prune(build(), stat_prune.Baseline("by size", by_size), MACs(0.5), budget="searched")
