"""A speed-up that is asked for is the one that is measured, by a clock that is known."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from itertools import islice
from typing import Any

import pytest
import torch
from families import FAMILIES, Family
from test_models import assert_untouched
from transformers import PreTrainedModel

from stat_prune import Latency, MACs, Speedup, prune_family
from stat_prune.errors import LatencyWarning, TargetError
from stat_prune.families import find_blocks
from stat_prune.measuring.latency import forward_turns
from stat_prune.reporting.report import PruningReport

BERT, LLAMA = FAMILIES[0], FAMILIES[4]
BATCH: dict[str, Any] = {"batch_size": 2, "seq_length": 12}


def built(family: Family, **config: Any) -> PreTrainedModel:
    """With a head, and some sizes of its own."""
    return dataclasses.replace(family, config=family.config | config).build(family.heads[1])


@pytest.fixture(params=[BERT, LLAMA], ids=["Bert", "Llama"])
def model(request):
    """Wide enough that one step of 8 neurons is a small part of the whole."""
    return built(request.param, intermediate_size=256)


def speed_up(dense, pruned, clock) -> float:
    """Measured anew, on other tokens."""
    ids = torch.full((BATCH["batch_size"], BATCH["seq_length"]), 7)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with forward_turns([dense, pruned], batch, clock) as turns:
        ((before, after),) = islice(turns, 1)
    return before / after


@pytest.mark.parametrize("crowding", [0.0, 0.02])
@pytest.mark.parametrize("asked", [1.0, 1.5, 2.0])
def test_the_speed_up_asked_for_is_measured(model, prune, linear_clock, crowding, asked):
    # With crowding a whole model takes more than its layers alone, so the table misleads.
    linear_clock.crowding = crowding
    before = copy.deepcopy(model)
    result = prune(model, Speedup(asked, **BATCH))
    assert_untouched(model, before)
    assert speed_up(model, result.model, linear_clock) == pytest.approx(asked, rel=0.05)
    assert result.report.speed.speed_up == pytest.approx(
        speed_up(model, result.model, linear_clock), rel=1e-3
    )
    if asked == 1.0:
        assert all(row.kept == row.total for row in result.report.blocks)


@pytest.mark.parametrize(
    "label", ["GPT2", "Phi3", "Falcon-multi-query", "Olmo2", "OPT-norms after"]
)
def test_layers_of_other_layouts_are_as_fast_as_asked(prune, linear_clock, label):
    (family,) = (one for one in FAMILIES if one.label == label)
    model = family.build(family.heads[1])
    result = prune(model, Speedup(1.3, **BATCH))
    # A head, or 8 of 48 neurons, are a large step.
    assert result.report.speed.speed_up == pytest.approx(1.3, rel=0.1)
    for block, row in zip(find_blocks(model), result.report.blocks, strict=True):
        assert not block.fixed or row.kept == row.total


def test_layers_of_several_networks_cannot_aim_at_a_time(prune):
    (family,) = (one for one in FAMILIES if one.label == "Mixtral")
    with pytest.raises(TargetError, match="have 5 blocks"):
        prune(family.build(), Speedup(1.3, **BATCH))


def test_the_report_says_what_was_asked_what_was_measured_and_on_what(model, prune, linear_clock):
    report = prune(model, Speedup(1.5, **BATCH)).report
    speed = report.speed
    assert speed.asked == pytest.approx(1.5)
    assert speed.low <= speed.speed_up <= speed.high
    assert speed.dense_seconds / speed.pruned_seconds == pytest.approx(speed.speed_up)
    assert (speed.batch_size, speed.seq_length, speed.threads) == (2, 12, 1)
    assert speed.device and speed.clock == "thread"
    assert report.seq_length == 12
    assert PruningReport.from_dict(json.loads(report.to_json())) == report
    shown = " ".join(str(report).split())
    for part in ("1.5 asked", f"{speed.speed_up:.4g} measured", "2 x 12 tokens", "threads: 1"):
        assert part in shown
    assert prune(model, MACs(0.6)).report.speed is None


def test_the_length_is_the_mean_of_the_calibration_set_unless_it_is_given(
    model, prune, linear_clock
):
    mean = prune(model, MACs(1.0)).report.seq_length
    assert mean != round(mean)
    report = prune(model, Latency(0.7)).report
    assert (report.speed.batch_size, report.speed.seq_length) == (1, round(mean))


def test_a_family_mixes_targets_of_time_and_of_work(
    model, texts, word_tokenizer, prune, linear_clock
):
    targets = [Speedup(1.5, **BATCH), MACs({"heads": 0.5}), Speedup(2.0)]
    settings = {"tokenizer": word_tokenizer, "progress": False, "effort": "fast"}
    results = prune_family(model, texts, targets=targets, **settings)
    for target, result in zip(targets, results, strict=True):
        expected = prune(model, target, effort="fast").plan
        assert {name: result.plan[name] for name in expected} == expected
        # Alone, a target for heads measures no neurons; in the family they stay whole.
        whole = {row.name: row.total for row in result.report.blocks}
        others = result.plan.keys() - expected.keys()
        assert all(result.plan[name] == list(range(whole[name])) for name in others)


@pytest.mark.parametrize(
    "settings",
    [
        {"uniform": True},
        {"method": "magnitude"},
        {"method": "id-unweighted"},
        {"ignore": ["heads"]},
        {"round_to": 4},
    ],
    ids=str,
)
def test_every_way_of_pruning_can_aim_at_a_time(model, prune, linear_clock, settings):
    result = prune(model, Speedup(1.4, **BATCH), **settings)
    # One head in every layer at once is as fine as uniform sizes get.
    tolerance = 0.1 if settings.get("uniform") else 0.05
    assert result.report.speed.speed_up == pytest.approx(1.4, rel=tolerance)
    multiple = settings.get("round_to", 8)
    for row in result.report.blocks:
        assert row.kind == "heads" or row.kept % multiple == 0
        assert row.kept == row.total or row.kind not in settings.get("ignore", ())


def test_in_place_the_model_itself_is_as_fast_as_asked(model, prune, linear_clock):
    dense = copy.deepcopy(model)
    result = prune(model, Speedup(1.5, **BATCH), inplace=True)
    assert result.model is model
    assert result.report.speed.speed_up == pytest.approx(1.5, rel=0.05)
    assert result.report.speed.speed_up == pytest.approx(
        speed_up(dense, model, linear_clock), rel=1e-3
    )


@pytest.mark.parametrize("remove", [False, True])
def test_what_cannot_be_reached_states_the_most_that_can(model, prune, linear_clock, remove):
    before = copy.deepcopy(model)
    with pytest.raises(TargetError, match="2 x 12 tokens") as caught:
        prune(model, Speedup(100, **BATCH), remove_blocks=remove)
    assert_untouched(model, before)
    most = float(str(caught.value).split("the model is ")[1].split(" ")[0])
    result = prune(model, Speedup(most, **BATCH), remove_blocks=remove)
    assert result.report.speed.speed_up == pytest.approx(most, rel=1e-3)
    kept = [(row.kept, 1 if row.kind == "heads" else 8) for row in result.report.blocks]
    whole = [units for units, least in kept if units == least]
    assert len(whole) == (1 if remove else len(kept))
    assert all(units in (0, least) for units, least in kept)


def test_a_miss_is_a_warning_with_both_figures(prune, linear_clock):
    # One layer, whose only choice is all neurons or half of them.
    model = built(BERT, num_attention_heads=1, intermediate_size=512)
    with pytest.warns(LatencyWarning, match=r"asked for is 1\.12, but 1(\.\d+)? was measured"):
        prune(model, Speedup(1.12, **BATCH), ignore=["encoder.layer.0.*"], round_to=256)


def test_a_hit_is_no_warning(model, prune, linear_clock):
    with warnings.catch_warnings():
        warnings.simplefilter("error", LatencyWarning)
        prune(model, Speedup(1.5, **BATCH))


def test_a_method_that_cannot_aim_at_a_time_says_so(model, prune):
    with pytest.raises(TargetError, match="'stat-paper' cannot aim at a time"):
        prune(model, Speedup(1.5, **BATCH), method="stat-paper")


def test_a_sequence_longer_than_the_model_takes_is_refused(model, prune):
    with pytest.raises(TargetError, match="seq_length=65 is beyond the model's 64 positions"):
        prune(model, Speedup(1.5, seq_length=65))


def test_key_value_heads_and_their_queries_leave_for_time_too(prune, linear_clock):
    model = built(LLAMA, intermediate_size=8)
    result = prune(model, Speedup(1.2, **BATCH))
    heads = [block for block in find_blocks(result.model) if block.kind == "heads"]
    assert any(block.num_units < 4 for block in heads)
    for block in heads:
        assert block.num_units % block.num_groups == 0
