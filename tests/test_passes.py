"""The argument `passes`, from the call to the report."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from tiny_models import tiny_bert
from transformers import BertForMultipleChoice

import stat_prune
from stat_prune.errors import CalibrationWarning, SettingsError
from stat_prune.pipeline.loaded_model import LoadedModel
from stat_prune.reporting.report import PruningReport


def rows(count):
    generator = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(3, 40, (9,), generator=generator)} for _ in range(count)]


def pruned(count=64, **options):
    options = {"target": stat_prune.MACs(0.5)} | options
    return stat_prune.prune(tiny_bert(), rows(count), progress=False, **options)


def test_a_second_pass_says_what_it_tried_and_took():
    report = pruned(passes=2).report
    assert report.second_pass is not None
    assert "first pass" in report.second_pass["distances"]
    assert "second pass" in report.seconds and "second pass" in str(report)
    assert PruningReport.from_dict(json.loads(report.to_json())) == report


@pytest.mark.parametrize("method", ["id-probed", "id-unweighted", "magnitude", "obs"])
def test_methods_that_do_not_search_have_one_pass_unless_asked(method):
    assert pruned(method=method).report.second_pass is None


def test_the_default_has_two_passes_but_in_a_hurry():
    assert pruned().report.second_pass is not None
    assert pruned(passes=1).report.second_pass is None
    assert pruned(effort="fast").report.second_pass is None
    assert pruned(effort="fast", passes=2).report.second_pass is not None


def test_a_report_shows_what_was_used_where_nothing_was_said():
    used = pruned().report.settings_used()
    assert (used["num_calibration_samples"], used["max_seq_length"]) == (64, 9)
    assert used["target"] == "MACs(fraction=0.5, seq_length=9.0)"
    asked = pruned(target=stat_prune.MACs(0.5, seq_length=5), max_seq_length=8).report
    assert asked.settings_used()["target"] == "MACs(fraction=0.5, seq_length=5)"
    assert asked.settings_used()["max_seq_length"] == 8


def test_statistics_are_given_up_before_the_last_second_pass(monkeypatch):
    statistics = []
    measure, solve_again = LoadedModel.measure, LoadedModel.solve_again
    found = []

    def measured(self):
        blocks = measure(self)
        statistics.extend(weakref.ref(one.statistics) for one in blocks)
        return blocks

    def solved(self, decided, budget):
        found.append(sum(one() is not None for one in statistics))
        return solve_again(self, decided, budget)

    monkeypatch.setattr(LoadedModel, "measure", measured)
    monkeypatch.setattr(LoadedModel, "solve_again", solved)
    targets = [stat_prune.MACs(0.7), stat_prune.MACs(0.5)]
    stat_prune.prune_family(tiny_bert(), rows(64), targets=targets, progress=False)
    assert found == [4, 0]
    found.clear()
    pruned(target=stat_prune.Parameters(0.6, embeddings=True))
    assert found[-1] == 0 < max(found)


def test_a_method_of_one_pass_takes_a_second_where_asked():
    assert pruned(method="id-unweighted", passes=2).report.second_pass is not None


def test_a_method_of_two_passes_takes_one_where_asked():
    assert pruned(method="stat-two-pass").report.second_pass is not None
    assert pruned(method="stat-two-pass", passes=1).report.second_pass is None


def test_too_few_sequences_to_hold_any_out_mean_one_pass():
    with pytest.warns(CalibrationWarning, match="one calibration sequence in 8, and there are 4"):
        assert pruned(count=4, passes=2).report.second_pass is None


def test_nothing_pruned_needs_no_second_pass():
    assert pruned(target=stat_prune.MACs(1.0), passes=2).report.second_pass is None


def test_another_number_is_refused():
    with pytest.raises(SettingsError, match="passes.*3"):
        pruned(passes=3)


@pytest.mark.parametrize(
    "method",
    [
        "magnitude",
        "random",
        "id-uncorrected",
        "flap",
        "grail",
        "corp",
        "kcm",
        "fisher",
        "kprune",
        "stat-paper",
    ],
)
def test_a_second_pass_of_a_method_that_has_no_correction_to_solve_again_is_refused(method):
    with pytest.raises(SettingsError, match=f"passes=2 .*{method}"):
        pruned(method=method, passes=2)


def test_a_head_that_is_not_read_is_not_run():
    """One that compares texts cannot be run on single ones."""
    model = tiny_bert(BertForMultipleChoice)
    before = {name: one.clone() for name, one in model.classifier.state_dict().items()}
    result = stat_prune.prune(
        model, rows(64), target=stat_prune.MACs(0.5), objective="hidden-states", progress=False
    )
    assert result.report.second_pass["taken"]
    after = result.model.classifier.state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 3}, "`passes` must be 1 or 2, got 3"),
        ({"passes": True}, "`passes` must be 1 or 2, got True"),
        ({"passes": None}, "`passes` must be 1 or 2, got None"),
        ({"passes": 2, "corrected": False}, "corrected=False has none"),
        ({"corrected": "yes"}, "`corrected` must be True or False, got 'yes'"),
        ({"absorb_mean": 0}, "`absorb_mean` must be True or False, got 0"),
    ],
    ids=str,
)
def test_a_method_of_ones_own_is_checked_too(options, message):
    with pytest.raises(SettingsError, match=message):
        stat_prune.Method(**options)
