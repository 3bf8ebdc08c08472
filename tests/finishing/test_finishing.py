"""What is left of a model is fitted to the dense one's outputs, from the call to the report."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import stat_prune
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.errors import DataError, LoadError, ModelError, SettingsError
from stat_prune.families import find_blocks
from stat_prune.finishing import fitting, results
from stat_prune.finishing.updates import Updates
from stat_prune.measuring.objectives import OBJECTIVES, output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.reporting.html_report import html_page
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.what_was_done import what_was_done
from stat_prune.settings.methods import FINISHES
from stat_prune.vib import VIBConfig, vib_finetune


def rows(count=40):
    generator = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(3, 40, (9,), generator=generator)} for _ in range(count)]


def classifier():
    return tiny_bert(BertForSequenceClassification)


def pruned(model=None, count=40, **options):
    options = {"target": stat_prune.MACs(0.5), "method": "id-even", "finish": "scales"} | options
    return stat_prune.prune(model or classifier(), rows(count), progress=False, **options)


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("kind", FINISHES)
def test_a_finish_comes_closer_to_the_dense_model_and_says_how_far(kind):
    model, result = classifier(), pruned(finish=kind)
    report = result.report
    found = report.finish
    assert found is not None and found.taken > 0
    batch = {"input_ids": torch.stack([row["input_ids"] for row in rows()])}
    before, after = (
        distance(model, one, [batch], output_distance)
        for one in (pruned(finish=None).model, result.model)
    )
    assert after < before
    assert found.held_out_sequences == 5
    assert "held out" in str(report) and f"finish            {kind}" in str(report)
    assert PruningReport.from_dict(json.loads(report.to_json())) == report


@pytest.mark.parametrize("objective", ["pooled", "hidden-states"])
def test_what_is_inside_a_model_with_a_head_is_an_objective_too(objective):
    found = pruned(objective=objective).report.finish
    assert found is not None and found.taken > 0


def test_what_a_run_preserved_is_fitted_to_unless_another_objective_is_asked_for(tmp_path):
    model = classifier()
    result = pruned(model, finish=None, objective="pooled", output_dir=tmp_path / "out")
    own, other = (
        stat_prune.finish(result, rows(), teacher=model, progress=False, **options)
        for options in ({}, {"objective": "logits"})
    )
    saved = stat_prune.finish(tmp_path / "out", rows(), teacher=model, progress=False)
    assert [one.report.finish.objective for one in (own, other, saved)] == [
        "pooled",
        "logits",
        "pooled",
    ]
    assert same(own.model, saved.model) and not same(own.model, other.model)
    expected = distance(
        *(one.base_model for one in (model, result.model)),
        [{"input_ids": torch.stack([row["input_ids"] for row in rows()])}],
        OBJECTIVES["pooled"],
    )
    assert own.report.finish.distances[0] == pytest.approx(expected, rel=0.9)


def test_a_function_that_a_run_preserved_has_to_be_passed_again(tmp_path):
    def own_distance(dense, found, _batch):
        return (dense.logits - found.logits).square().sum(-1)

    model = classifier()
    result = pruned(model, finish=None, objective=own_distance, output_dir=tmp_path / "out")
    for given in (result, tmp_path / "out"):
        with pytest.raises(SettingsError, match=r"own_distance.*objective=.*logits"):
            stat_prune.finish(given, rows(), teacher=model, progress=False)
    done = stat_prune.finish(result, rows(), teacher=model, objective=own_distance, progress=False)
    assert done.report.finish.taken > 0 and "own_distance" in done.report.finish.objective


def test_every_finish_is_told_of():
    model = classifier()
    first = pruned(model)
    before = first.report.finish
    result = stat_prune.finish(first, rows(), kind="lora", teacher=model, progress=False)
    report = result.report
    assert report.earlier_finishes == [before] and report.finish.kind == "lora"
    assert first.report.finishes == [before]
    told = (str(report), html_page(report, result.plan), what_was_done(report))
    assert all("scales; " in one and "lora; " in one for one in told)
    assert "nothing was trained" not in what_was_done(report)
    assert report.seconds["finish"] > first.report.seconds["finish"]
    assert PruningReport.from_dict(json.loads(report.to_json())) == report


def test_a_report_from_before_it_told_of_every_finish_is_read():
    report = pruned().report
    written = json.loads(report.to_json())
    del written["earlier_finishes"], written["finish"]["objective"]
    assert PruningReport.from_dict(written) == report


def test_the_web_page_says_so():
    result = pruned()
    assert f"Finish: {result.report.finish}." in html_page(result.report, result.plan)


def test_the_start_is_kept_where_nothing_is_better():
    # Nothing is removed, so that there is no distance to be less than.
    model = classifier()
    result = pruned(model, target=stat_prune.MACs(1.0))
    assert result.report.finish is not None and result.report.finish.taken == 0
    assert same(result.model, model)


def test_a_fit_that_goes_wrong_leaves_the_start(monkeypatch):
    monkeypatch.setitem(fitting.RATES, "scales", 1e30)
    plain, result = pruned(finish=None), pruned()
    assert result.report.finish is not None and result.report.finish.taken == 0
    assert same(plain.model, result.model)


def test_a_rate_that_ever_led_away_is_followed_by_lower_ones_and_the_best_of_all_is_taken(
    monkeypatch,
):
    found = {1.0: [0.5, 1.5], 0.25: [0.4, 0.3], 0.0625: [0.1]}
    tried = []

    def run(attempt, kind, fraction, steps, seed, least):
        assert all(bool((one == 1).all()) for one in attempt.updates.weights)  # each begins anew
        tried.append(fraction)
        for one in attempt.updates.weights:
            one.data.fill_(2.0)
        return [least * one for one in found[fraction]], attempt.updates.values(), steps

    monkeypatch.setattr(fitting._Attempt, "run", run)
    report = pruned().report.finish
    assert tried == [1.0, 0.25]
    assert report is not None and report.taken == 2
    assert report.distances[2] == pytest.approx(0.3 * report.distances[0])


def test_an_attempt_that_is_behind_its_start_ends_at_once(monkeypatch):
    monkeypatch.setitem(fitting.RATES, "scales", 30.0)
    monkeypatch.setattr(fitting, "RATE_FRACTIONS", (1.0,))
    report = pruned().report.finish
    assert report is not None and report.taken == 0
    assert len(report.distances) == 2 and report.distances[1] > report.distances[0]
    assert report.passes < 0.5 * fitting.PASSES


def test_the_same_seed_gives_the_same_bits_and_in_place_too():
    model = classifier()
    results = [pruned(), pruned(), pruned(model, inplace=True)]
    assert results[2].model is model
    assert same(results[0].model, results[1].model) and same(results[0].model, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_come_back_in_it(dtype):
    result = pruned(classifier().to(dtype))
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert result.report.finish is not None and result.report.finish.taken > 0


def test_methods_with_a_way_of_their_own_are_finished_too():
    assert pruned(method="flap").report.finish is not None


def test_every_member_of_a_family_is_finished():
    targets = [stat_prune.MACs(0.6), stat_prune.MACs(0.4)]
    members = stat_prune.prune_family(
        classifier(), rows(), targets=targets, method="id-even", finish="scales", progress=False
    )
    assert all(one.report.finish is not None for one in members)


def test_what_masks_have_left_is_finished():
    model = classifier()
    masks = VIBConfig(
        train_weights=False, mask_steps=3, least_mask_steps=1, folding="corrected", sublayers=True
    )
    cut = vib_finetune(model, rows(), target=stat_prune.MACs(0.5), mode=masks, progress=False)
    result = stat_prune.finish(cut, rows(), teacher=model, progress=False)
    assert result.report.finish is not None and result.report.finish.taken > 0
    assert result.plan == cut.plan


def test_models_without_some_blocks_are_finished():
    target = stat_prune.MACs(0.1)
    result = pruned(method="id-unweighted", target=target, remove_blocks=True)
    assert not all(row.kept for row in result.report.blocks)
    assert result.report.finish is not None and result.report.finish.taken > 0


def test_a_generator_is_read_once():
    result = stat_prune.prune(
        classifier(),
        iter(rows()),
        target=stat_prune.MACs(0.5),
        method="id-even",
        finish="scales",
        progress=False,
    )
    assert result.report.finish is not None and result.report.finish.sequences == 35


def test_a_saved_result_is_finished_with_its_dense_model(tmp_path):
    model = classifier()
    pruned(model, finish=None, output_dir=tmp_path / "out")
    folder = tmp_path / "out"
    with pytest.raises(SettingsError, match="teacher=model"):
        stat_prune.finish(folder, rows(), progress=False)
    result = stat_prune.finish(folder, rows(), teacher=model, progress=False)
    assert result.report.finish is not None and result.report.finish.taken > 0
    assert not same(result.model, stat_prune.load(folder))
    result.save(tmp_path / "finished")
    assert same(stat_prune.load(tmp_path / "finished"), result.model)


def test_what_was_pruned_layer_by_layer_is_finished_as_it_is_returned(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path / "dense")
    checkpoint = stat_prune.prune_checkpoint(
        tmp_path / "dense",
        rows(),
        target=stat_prune.MACs(0.5),
        method="id-even",
        output_dir=tmp_path / "out",
        progress=False,
    )
    done, expected = (
        stat_prune.finish(given, rows(), teacher=teacher, progress=False)
        for given, teacher in ((checkpoint, None), (tmp_path / "out", model))
    )
    assert done.report.finish.taken > 0
    assert same(done.model, expected.model)
    again = stat_prune.finish(done, rows(), progress=False)  # its teacher is known now
    assert len(again.report.finishes) == 2


@pytest.mark.parametrize("given", [3, None, b"out", ["out"], tiny_bert()])
def test_what_is_no_result_is_refused_by_name(given):
    with pytest.raises(SettingsError, match="`result` must be"):
        stat_prune.finish(given, rows(), progress=False)


@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [(3, ModelError, "`teacher` must be"), ("no such folder", LoadError, "neither a folder")],
)
def test_what_is_no_teacher_is_refused_by_name(teacher, error, message):
    with pytest.raises(error, match=message):
        stat_prune.finish(pruned(finish=None), rows(), teacher=teacher, progress=False)


def test_a_folder_that_is_none_is_said_to_be():
    with pytest.raises(LoadError, match="is not a folder"):
        stat_prune.finish("no such folder", rows(), progress=False)


def test_a_teacher_is_not_computed_with_itself(monkeypatch):
    """It may be on another device than the fit, in training mode, or in use."""
    model, seen = classifier().train(), []
    own = results.fit
    monkeypatch.setattr(results, "fit", lambda *given, **options: (
        seen.append(given[1]) or own(*given, **options)
    ))  # fmt: skip
    stat_prune.finish(pruned(model, finish=None), rows(), teacher=model, progress=False)
    assert seen and seen[0] is not model and model.training


def test_what_has_uniform_sizes_opens_with_the_stock_class_when_it_is_finished(tmp_path):
    model = classifier()
    target = stat_prune.MACs({"neurons": 0.5})
    result = pruned(model, target=target, method="magnitude", finish=None, uniform=True)
    done = stat_prune.finish(result, rows(), kind="weights", teacher=model, progress=False)
    assert done.report.finish.taken > 0
    done.save(tmp_path / "out")
    found = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(found) is type(done.model) is BertForSequenceClassification
    assert not (tmp_path / "out" / "modeling_stat_prune.py").exists()
    assert same(found, done.model)
    batch = {"input_ids": torch.stack([row["input_ids"] for row in rows()])}
    with torch.no_grad():
        assert torch.equal(found.eval()(**batch).logits, done.model(**batch).logits)


def test_the_dense_model_is_loaded_where_it_came_from(tmp_path):
    classifier().save_pretrained(tmp_path / "dense")
    result = pruned(stat_prune.load(tmp_path / "dense"), finish=None)
    before = copy.deepcopy(result.model)
    finished = stat_prune.finish(result, rows(), progress=False)
    assert finished.report.finish is not None
    assert same(result.model, before)


def test_a_fit_that_was_done_is_not_done_again(tmp_path, monkeypatch):
    def broken_off(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stat_prune.pruning.with_finish", broken_off)
        with pytest.raises(KeyboardInterrupt):
            pruned(work_dir=tmp_path / "work")
    monkeypatch.setattr(results, "fit", broken_off)
    again = pruned(work_dir=tmp_path / "work")
    monkeypatch.undo()
    assert same(again.model, pruned().model)


def test_other_kinds_are_refused():
    with pytest.raises(SettingsError, match=r"finish.*scales.*'more'"):
        pruned(finish="more")
    with pytest.raises(SettingsError, match=r"kind.*scales.*'more'"):
        stat_prune.finish(pruned(finish=None), rows(), kind="more")


def test_one_example_cannot_be_fitted_and_judged_on():
    with pytest.raises(DataError, match="held out"):
        pruned(count=1)


def test_two_examples_are_an_attempt_and_not_many_that_change_nothing():
    found = pruned(count=2, method="magnitude").report.finish
    assert found is not None and (found.sequences, found.held_out_sequences) == (1, 1)
    assert found.distances[1] != found.distances[0]
    assert found.passes <= 2 * fitting.PASSES


def test_a_handful_of_examples_is_fitted():
    found = pruned(count=5, method="magnitude").report.finish
    assert found is not None and found.sequences == 4 and found.taken > 0


def test_no_step_of_a_fit_is_without_a_rate():
    assert fitting.share_of_rate(0, 1) == 1
    for steps in range(1, 60):
        shares = [fitting.share_of_rate(done, steps) for done in range(steps)]
        peak = shares.index(1)
        assert min(shares) > 0 and shares == [*sorted(shares[:peak]), *sorted(shares[peak:])[::-1]]


@pytest.mark.parametrize("count", [1, 3, 8, 9, 35])
def test_steps_read_the_sequences_that_they_are_said_to(count):
    examples = calibration_set_for(classifier(), rows(count), None, num_samples=count)
    for sequences in (1, count, 3 * count + 2):
        steps = fitting.num_steps(sequences, count)
        batches = [len(one["input_ids"]) for one in fitting._batches(examples, steps, 0)]
        assert sum(batches) == fitting.sequences_read(steps, count)
        assert sum(batches[:-1]) < sequences <= sum(batches)


def detached(dense, found, _batch):
    return (dense.logits - found.logits).detach().square().sum(-1)


def in_place(dense, found, _batch):
    return ((dense.logits - found.logits).relu().exp().exp_() - 1).log1p_().sum(-1)


@pytest.mark.parametrize(
    ("objective", "message"), [(detached, "no gradient"), (in_place, "in place")]
)
def test_an_objective_without_a_gradient_is_refused(objective, message):
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SettingsError, match=message):
        stat_prune.prune(
            model, rows(), target=stat_prune.MACs(0.5), objective=objective, finish="scales",
            inplace=True, progress=False,
        )  # fmt: skip
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


def test_layer_by_layer_there_is_no_finish_but_afterwards(tmp_path):
    classifier().save_pretrained(tmp_path / "dense")
    with pytest.raises(SettingsError, match=r"stat_prune\.finish"):
        stat_prune.prune_checkpoint(
            tmp_path / "dense",
            rows(),
            target=stat_prune.MACs(0.5),
            output_dir=tmp_path / "out",
            finish="scales",
        )


def test_dispatched_models_are_refused_before_any_work():
    from accelerate import cpu_offload

    with pytest.raises(ModelError, match="device_map"):
        pruned(cpu_offload(classifier()))


@pytest.mark.parametrize("kind", FINISHES)
@pytest.mark.parametrize("build", [classifier, tiny_llama, lambda: tiny_gpt2()])
def test_updates_change_nothing_before_they_are_fitted(build, kind):
    model = build()
    before = copy.deepcopy(model)
    updates = Updates(model, find_blocks(before), kind, seed=0)
    assert len(updates.weights) >= 4
    changed = updates.folded()
    assert same(model, before)
    assert set(changed) <= set(dict(before.named_parameters()))


def test_scales_are_of_what_a_transposed_layer_reads():
    model = tiny_gpt2()
    updates = Updates(model, find_blocks(model), "scales", seed=0)
    assert [tuple(one.shape) for one in updates.weights] == [(32, 1), (48, 1)] * 2


def test_low_rank_updates_are_as_large_a_part_of_a_weight_whatever_its_scale():
    model, larger = classifier(), classifier()
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.mul_(10)
    rates, of_larger = (
        [group["lr"] for group in fitting._rates(updates, "lora", 1.0)]
        for updates in (Updates(one, find_blocks(one), "lora", seed=0) for one in (model, larger))
    )
    count = len(Updates(classifier(), find_blocks(classifier()), "lora", seed=0).weights)
    assert of_larger[:count:2] == pytest.approx([10 * rate for rate in rates[:count:2]])
    assert of_larger[1:count:2] == rates[1:count:2]


def test_weights_themselves_are_those_of_the_layers_and_not_of_embeddings_or_head():
    result, plain = pruned(finish="weights"), pruned(finish=None)
    assert result.report.finish.taken > 0
    ours, theirs = result.model.state_dict(), plain.model.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    kept = {name for name in ours if "embeddings.w" in name or name.startswith("classifier")}
    layers = {name for name in ours if "layer." in name and name.endswith("weight")}
    assert kept and not kept & changed
    assert layers <= changed


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_head=4, n_layer=2, n_inner=48, n_positions=64)
    return GPT2LMHeadModel(config).eval()
