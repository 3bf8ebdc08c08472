"""What `vib_finetune` promises, on tiny models."""

from __future__ import annotations

import copy
import os
import re
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from vib_runs import classifier, finetune, masked_and_cut, output, sequences, short

import stat_prune
from stat_prune import MACs, Parameters, Speedup, StatPruneError
from stat_prune.errors import DataError, NonFiniteLossError, SettingsError, TargetError
from stat_prune.families import find_blocks
from stat_prune.machine.lock import Lock
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.vib import MODES, VIBConfig, vib_finetune
from stat_prune.vib.masks import make_masks


def wide() -> PreTrainedModel:
    """Neurons enough that the target can be met within 1 %."""
    return classifier(intermediate_size=300)


@pytest.mark.parametrize("target", [MACs(0.5), Parameters(0.6)])
@pytest.mark.parametrize("mode", ["full", "masks"])
def test_the_cut_model_keeps_what_was_asked_within_one_percent(target, mode):
    report = finetune(wide(), target, mode=short(mode)).report
    before, after = (
        (size.block_macs, size.block_parameters) for size in (report.before, report.after)
    )
    which = 0 if isinstance(target, MACs) else 1
    assert after[which] / before[which] == pytest.approx(target.fraction, rel=0.01)
    assert after[which] / before[which] <= target.fraction
    assert 0 < report.settings["threshold_fraction"] <= 1


@pytest.mark.parametrize("build", [classifier, tiny_bert, tiny_llama])
def test_the_result_reloads_to_the_bit_and_the_model_is_untouched(build, inputs, tmp_path):
    model = build()
    state = copy.deepcopy(model.state_dict())
    result = finetune(model, MACs(0.6))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    result.save(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(loaded, inputs), output(result.model, inputs))
    assert loaded.num_parameters() == result.report.after.parameters < model.num_parameters()
    assert {name: len(units) for name, units in result.plan.items()} == {
        row.name: row.kept for row in result.report.blocks
    }


@pytest.mark.parametrize("build", [classifier, tiny_llama])
@pytest.mark.parametrize("without", [(), (0, 3)], ids=["all sublayers", "some sublayers"])
def test_the_masked_model_in_mean_mode_is_the_cut_model(build, without, inputs):
    masked, cut = masked_and_cut(build(), inputs, without)
    assert cut.abs().max() > 0.1
    assert (cut - masked).abs().max() <= 1e-4


def without_sublayers(monkeypatch, *gone: str) -> None:
    """Let the masks over these blocks say from the start that they leave."""
    from stat_prune.vib import steps

    def made(blocks: Any, config: VIBConfig, *, seed: int) -> Any:
        masks = make_masks(blocks, config, seed=seed)
        for block, mask in zip(blocks, masks, strict=True):
            if block.name in gone:
                mask.whole.log_variance.data.fill_(9.0)
        return masks

    monkeypatch.setattr(steps, "make_masks", made)


@pytest.mark.parametrize("build", [classifier, tiny_llama])
@pytest.mark.parametrize("mode", ["full", "masks"])
def test_sublayers_that_leave_are_gone_and_the_model_reloads_to_the_bit(
    build, mode, inputs, tmp_path, monkeypatch
):
    model = build()
    first, *_, last = (block.name for block in find_blocks(model))
    without_sublayers(monkeypatch, first, last)
    result = finetune(model, Parameters(0.3), mode=short(mode, sublayers=True))
    assert result.plan[first] == result.plan[last] == []
    sizes = {block.name: block.num_units for block in find_blocks(result.model)}
    assert sizes[first] == sizes[last] == 0
    assert sizes == {row.name: row.kept for row in result.report.blocks}
    report = result.report
    assert report.after.parameters == sum(p.numel() for p in result.model.parameters())
    assert report.after.block_parameters / report.before.block_parameters <= 0.3
    result.save(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(loaded, inputs), output(result.model, inputs))
    again = finetune(loaded, Parameters(0.9), mode=short(mode, sublayers=True))
    assert again.report.after.parameters < report.after.parameters


def test_what_has_left_in_a_gradual_run_stays_away(tmp_path, monkeypatch):
    model = wide()
    names = [block.name for block in find_blocks(model)]
    without_sublayers(monkeypatch, names[1])
    settings = {"mode": short(sublayers=True), "output_dir": tmp_path / "run"}
    result = finetune(model, MACs(0.3), gradual=[0.5], **settings)
    rows = {row.name: row for row in result.report.blocks}
    assert list(rows) == names
    assert (rows[names[1]].kept, rows[names[1]].total) == (0, 300)
    assert result.plan[names[1]] == []
    after, before = result.report.after.block_macs, result.report.before.block_macs
    assert after / before == pytest.approx(0.3, rel=0.02)


def test_keeping_everything_without_training_is_the_identity(inputs):
    model = classifier()
    result = finetune(model, MACs(1.0), mode=short(finetune_steps=0))
    assert torch.equal(output(result.model, inputs), output(model, inputs))
    assert result.report.after == result.report.before


def test_the_same_seed_gives_the_same_model(inputs):
    first, second = (finetune(classifier(), MACs(0.6), seed=3) for _ in range(2))
    assert first.plan == second.plan
    assert torch.equal(output(first.model, inputs), output(second.model, inputs))


def test_the_random_numbers_of_the_caller_go_on_as_they_would():
    model = classifier()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(model, MACs(0.6))
    assert torch.equal(torch.rand(3), expected)


def test_masks_mode_trains_no_weight():
    model = classifier()
    result = finetune(model, MACs(0.6), mode=short("masks", folding="means"))
    for row in result.report.blocks:
        block = next(one for one in find_blocks(model) if one.name == row.name)
        units = torch.tensor(result.plan[row.name])
        for producer in block.producers:
            dense = model.base_model.get_submodule(producer.path).weight
            cut = result.model.base_model.get_submodule(producer.path).weight
            assert torch.equal(cut, dense[block.rows(producer, units)])


def test_with_labels_the_task_is_learned_and_without_them_the_teacher():
    data = sequences(64, labels=True)
    mode = replace(short(), hidden_weight=0.0, logit_weight=0.0, finetune_steps=150, mask_steps=2)
    mode = replace(mode, learning_rate=2e-3)
    learned = finetune(classifier(), MACs(0.8), data, mode=mode).model.eval()
    with torch.no_grad():
        found = [
            int(learned(input_ids=torch.tensor([row["input_ids"]])).logits.argmax()) for row in data
        ]
    right = sum(one == row["labels"] for one, row in zip(found, data, strict=True))
    assert right >= 55
    report = finetune(classifier(), MACs(0.8), data, labels=False).report
    assert report.settings["labels"] is False


def test_training_after_the_cut_brings_the_model_back_to_its_teacher(inputs):
    model = wide()
    expected = output(model, inputs)
    errors = []
    for steps in (0, 80):
        mode = short(finetune_steps=steps, folding="means", learning_rate=2e-3)
        cut = finetune(model, MACs(0.5), mode=mode).model
        errors.append(float((output(cut, inputs) - expected).norm()))
    assert errors[1] < errors[0] / 2


def test_the_correction_brings_the_masks_closer_to_the_teacher(inputs):
    model = wide()
    expected = output(model, inputs)
    errors = {
        folding: float(
            (
                output(
                    finetune(model, MACs(0.6), mode=short("masks", folding=folding)).model, inputs
                )
                - expected
            ).norm()
        )
        for folding in ("means", "corrected")
    }
    assert errors["corrected"] < errors["means"]


@pytest.mark.parametrize(("finetune_steps", "read"), [(1, 16), (3, 24), (None, 48)])
def test_no_more_is_read_than_the_steps_can_see(finetune_steps, read):
    config = short(mask_steps=2, finetune_steps=finetune_steps, correction_samples=8)
    result = finetune(tiny_bert(), MACs(0.6), mode=replace(config, finetune_epochs=0.1))
    assert result.report.settings["calibration_samples"] == read


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 7), ({"least_mask_steps": 2}, 3), ({"mask_steps": 5}, 5)],
    ids=["few data", "enough data", "steps as given"],
)
def test_masks_are_trained_for_no_fewer_steps_than_the_least(fields, expected, monkeypatch):
    from stat_prune.vib import steps

    trained = []
    monkeypatch.setattr(steps, "train", lambda *args: trained.append(args[3].steps))
    mode = short(
        "masks", **{"mask_steps": None, "mask_epochs": 0.5, "least_mask_steps": 7} | fields
    )
    finetune(classifier(), MACs(0.7), mode=mode)
    assert trained == [expected]


@pytest.mark.parametrize(("build", "expected"), [(classifier, 0.1), (tiny_llama, 1.0)])
def test_a_language_model_learns_more_from_the_logits_of_its_teacher(build, expected):
    for given, weight in ((None, expected), (0.3, 0.3)):
        report = finetune(build(), MACs(0.7), mode=short("masks", logit_weight=given)).report
        assert report.settings["vib"]["logit_weight"] == weight


def test_fast_reads_three_percent_of_the_data():
    report = finetune(classifier(), MACs(0.7), sequences(200), mode=short("fast")).report
    assert report.settings["training_samples"] == 6
    # One in nine is held out, to judge the search for a budget on.
    assert report.settings["calibration_samples"] == 200 - 200 // 9


def test_every_step_of_a_gradual_run_leaves_a_model(tmp_path, inputs):
    model = wide()
    result = finetune(model, MACs(0.4), gradual=[0.8, 0.6], output_dir=tmp_path / "run")
    before = model.num_parameters()
    for name, fraction in (("0.8", 0.8), ("0.6", 0.6), ("0.4", 0.4)):
        loaded = stat_prune.load(tmp_path / "run" / name / "model")
        macs = sum(b.macs(b.num_units, b.num_groups, 9) for b in find_blocks(loaded))
        dense = sum(b.macs(b.num_units, b.num_groups, 9) for b in find_blocks(model))
        assert macs / dense == pytest.approx(fraction, rel=0.02)
        assert loaded.num_parameters() < before
        before = loaded.num_parameters()
    assert_same_model_outputs(loaded, result.model, inputs)
    rows = {row.name: row for row in result.report.blocks}
    for block in find_blocks(model):
        assert rows[block.name].total == block.num_units
        units = result.plan[block.name]
        assert units == sorted(set(units)) and len(units) == rows[block.name].kept
        assert max(units) < block.num_units


def assert_same_model_outputs(first: Any, second: Any, inputs: dict[str, torch.Tensor]) -> None:
    assert torch.equal(output(first, inputs), output(second, inputs))


def test_a_pruned_model_is_trained_on_towards_the_dense_one():
    dense, data = wide(), sequences()
    pruned = stat_prune.prune(dense, data, target=MACs(0.4), progress=False).model
    mode = replace(short(finetune_steps=80), learning_rate=1e-3)
    result = finetune(pruned, MACs(1.0), data, mode=mode, teacher=dense)
    assert result.report.after.parameters == pruned.num_parameters()

    batches = [{"input_ids": torch.tensor([row["input_ids"]])} for row in data]
    before, after = (
        distance(dense, one, batches, output_distance) for one in (pruned, result.model)
    )
    assert after < before / 2


@pytest.mark.parametrize(("steps", "broken_at"), [(6, 6), (14, 12)], ids=["first", "second"])
def test_a_run_that_was_broken_off_in_an_epoch_goes_on_to_the_same_model(
    steps, broken_at, tmp_path, inputs, monkeypatch
):
    config = short(save_steps=2, mask_steps=steps)
    expected = finetune(classifier(), MACs(0.6), mode=config)
    from stat_prune.vib import objective

    whole, calls = objective.Objective.terms, []

    def breaks(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == broken_at:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(objective.Objective, "terms", breaks)
    with pytest.raises(KeyboardInterrupt):
        finetune(classifier(), MACs(0.6), mode=config, output_dir=tmp_path / "run")
    monkeypatch.setattr(objective.Objective, "terms", whole)
    with pytest.raises(StatPruneError, match="resume=True"):
        finetune(classifier(), MACs(0.6), mode=config, output_dir=tmp_path / "run")
    with pytest.raises(SettingsError, match="no run with this config"):
        finetune(classifier(), MACs(0.6), output_dir=tmp_path / "run", resume=True)
    resumed = finetune(
        classifier(), MACs(0.6), mode=config, output_dir=tmp_path / "run", resume=True
    )
    assert resumed.plan == expected.plan
    assert torch.equal(output(resumed.model, inputs), output(expected.model, inputs))
    again = finetune(classifier(), MACs(0.6), mode=config, output_dir=tmp_path / "run", resume=True)
    assert again.report.to_dict() == resumed.report.to_dict()


def test_a_loss_that_is_lost_stops_the_run_and_names_its_term(tmp_path, monkeypatch):
    from stat_prune.vib import objective

    calls: list[int] = []

    def lost(*args: Any) -> torch.Tensor:
        calls.append(1)
        return torch.tensor(float("nan") if len(calls) > 4 else 0.1, requires_grad=True)

    monkeypatch.setattr(objective, "hidden_distance", lost)
    with pytest.raises(NonFiniteLossError, match=r"'hidden'.* at step 4\..*checkpoint-4"):
        finetune(classifier(), MACs(0.6), mode=short(save_steps=2), output_dir=tmp_path / "run")
    assert (Path(tmp_path) / "run/0.6/masks/checkpoint-4/model.safetensors").is_file()


def test_a_config_survives_json():
    config = short(layer_map=((0, 1), (1, 3)), kl_weight=0.3)
    assert VIBConfig.from_json(config.to_json()) == config
    with pytest.raises(SettingsError, match="no field bogus"):
        VIBConfig.from_json('{"bogus": 1}')


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"data_fraction": 0.0}, "data_fraction"),
        ({"batch_size": 0}, "batch_size"),
        ({"mask_steps": 0}, "mask_steps"),
        ({"folding": "median"}, "folding"),
        ({"folding": "corrected"}, "train_weights=False"),
        ({"task_weight": 0, "logit_weight": 0, "hidden_weight": 0}, "something to learn"),
        ({"temperature": 0.0}, "temperature"),
        ({"mask_epochs": -1.0}, "mask_epochs"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields, reason):
    with pytest.raises(SettingsError, match=reason):
        VIBConfig(**fields)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"labels": True}, DataError, "48 of 48 examples have no label"),
        ({"target": MACs(0.001)}, TargetError, "least that can be reached"),
        ({"target": Speedup(2)}, TargetError, "MACs or Parameters"),
        ({"target": MACs({"heads": 0.5})}, TargetError, "one fraction"),
        ({"gradual": [0.5, 0.7], "output_dir": "run"}, TargetError, "descend"),
        ({"gradual": [0.9]}, SettingsError, "output_dir"),
        ({"mode": "fastest"}, SettingsError, "Unknown mode 'fastest'"),
        ({"teacher": classifier(vocab_size=80)}, SettingsError, "vocabulary of 80"),
        ({"train_dataset": []}, DataError, "empty"),
    ],
)
def test_bad_input_gives_one_clear_error_before_any_work(settings, error, reason, monkeypatch):
    monkeypatch.setattr("stat_prune.vib.steps.train", None)
    arguments: dict[str, Any] = {"target": MACs(0.6), "train_dataset": sequences()} | settings
    with pytest.raises(error, match=reason):
        vib_finetune(classifier(), progress=False, **arguments)


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        (classifier, {"logit_weight": 0.0, "hidden_weight": 0.0}),
        (classifier, {"logit_weight": 0.0, "hidden_weight": 0.0, "train_weights": False}),
        (tiny_bert, {"hidden_weight": 0.0}),
    ],
    ids=["no label", "no label for masks", "no head"],
)
def test_a_loss_without_a_term_is_refused_before_any_work(build, fields, monkeypatch):
    monkeypatch.setattr("stat_prune.vib.steps.train", None)
    with pytest.raises(DataError, match="hidden_weight"):
        finetune(build(), MACs(0.6), mode=short(**fields))


def test_the_progress_bar_shows_the_loss_the_expected_cost_and_the_target(capsys, monkeypatch):
    monkeypatch.setattr("stat_prune.machine.progress.someone_looks_on", lambda: True)
    monkeypatch.setattr(
        "stat_prune.machine.progress.tqdm", partial(tqdm, mininterval=0)
    )  # shows every step
    finetune(classifier(), MACs(0.6), mode=short(mask_steps=8), progress=True)
    shown = capsys.readouterr().err
    assert "train masks" in shown and "train pruned model" in shown
    assert re.search(r"loss=\d+\.\d+, cost=[01]\.\d+, target=0\.6", shown)


def test_labels_that_are_no_class_are_refused():
    data = [row | {"labels": 7} for row in sequences()]
    with pytest.raises(DataError, match="label 7 is none of the model's classes 0 to 1"):
        finetune(classifier(), MACs(0.6), data)


def test_weights_in_half_precision_are_refused_and_masks_on_them_are_not(inputs):
    model = classifier().to(torch.bfloat16)
    with pytest.raises(StatPruneError, match="float32"):
        finetune(model, MACs(0.6))
    result = finetune(model, MACs(0.6), mode=short("masks"))
    assert result.model.dtype == torch.bfloat16
    assert MODES["masks"].train_weights is False
    assert output(result.model, inputs).isfinite().all()


def test_the_folder_of_a_run_that_goes_on_is_refused_by_the_name_of_its_process(tmp_path):
    run = {"mode": short("masks"), "output_dir": tmp_path / "run"}
    finetune(classifier(), MACs(0.6), **run)
    with (
        closing(Lock(tmp_path / "run")),
        pytest.raises(StatPruneError, match=f"in use by process {os.getpid()}"),
    ):
        finetune(classifier(), MACs(0.6), resume=True, **run)
    finetune(classifier(), MACs(0.6), resume=True, **run)


def test_what_cannot_be_saved_is_known_before_training(tmp_path):
    model = tiny_llama()
    model.generation_config.temperature = 0.9  # without do_sample
    with pytest.raises(StatPruneError, match="generation_config cannot be saved"):
        finetune(model, MACs(0.6), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
