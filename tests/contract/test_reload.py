"""A saved result loads to the bit in each way, and is an ordinary model afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES, Family, output
from isolation import outputs_without_stat_prune
from transformers import PreTrainedModel

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.architectures import find_blocks


def assert_same_weights(loaded: PreTrainedModel, model: PreTrainedModel) -> None:
    expected, actual = model.state_dict(), loaded.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


def auto_class(head: str) -> str:
    return "AutoModel" if head == "Model" else f"AutoModel{head}"


@pytest.mark.parametrize("position", range(5))
def test_every_head_class_loads_to_the_bit_in_both_ways(
    family: Family, position, prune, inputs, tmp_path
):
    head = family.heads[position]
    result = prune(family.build(head), MACs(0.6))
    result.save(tmp_path / "out")
    remote = getattr(transformers, auto_class(head)).from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    for loaded in (stat_prune.load(tmp_path / "out"), remote):
        assert type(loaded).__name__ == family.name + head
        assert_same_weights(loaded, result.model)
        assert torch.equal(output(loaded, inputs), output(result.model, inputs))
        # Memory that is laid out otherwise would show in products with a single vector.
        one_token = {name: value[:1, :1] for name, value in inputs.items()}
        assert torch.equal(output(loaded, one_token), output(result.model, one_token))


def test_the_folder_loads_to_the_bit_where_stat_prune_cannot_be_imported(prune, inputs, tmp_path):
    folders, expected = [], []
    for family in FAMILIES:
        head = family.heads[1]
        result = prune(family.build(head), MACs(0.6))
        folders.append((tmp_path / family.name, auto_class(head)))
        result.save(folders[-1][0])
        expected.append(result.model(input_ids=inputs["input_ids"])[0])
    loaded = outputs_without_stat_prune(folders, inputs["input_ids"], tmp_path)
    for actual, wanted in zip(loaded, expected, strict=True):
        assert torch.equal(actual, wanted)


def uniform_target(family: Family) -> Parameters:
    """What a config of this family can say: any number of heads only where `head_dim` exists."""
    return Parameters({"heads": 0.6, "neurons": 0.6} if family.is_decoder else {"neurons": 0.6})


def test_uniform_results_load_in_plain_transformers_without_any_flag(prune, inputs, tmp_path):
    folders, expected = [], []
    for family in FAMILIES:
        head = family.heads[1]
        result = prune(family.build(head), uniform_target(family), uniform=True)
        result.save(tmp_path / family.name)
        folders.append((tmp_path / family.name, auto_class(head)))
        expected.append(result.model(input_ids=inputs["input_ids"])[0])
        assert_plain(tmp_path / family.name)
    loaded = outputs_without_stat_prune(folders, inputs["input_ids"], tmp_path, remote_code=False)
    for actual, wanted in zip(loaded, expected, strict=True):
        assert torch.equal(actual, wanted)


def assert_plain(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" not in config and "stat_prune" not in config
    assert not list(folder.glob("*.py"))


def test_uniform_gives_every_layer_the_same_sizes(family: Family, prune):
    result = prune(family.build(), MACs(0.5), uniform=True)
    sizes = {(b.kind, b.num_units, b.num_groups) for b in find_blocks(result.model)}
    assert len(sizes) == 2


def test_a_result_can_be_pruned_again_and_saved_again(family: Family, prune, inputs, tmp_path):
    first = prune(family.build(family.heads[1]), MACs(0.7))
    first.save(tmp_path / "first")
    second = prune(stat_prune.load(tmp_path / "first"), MACs(0.6))
    assert second.report.before.block_macs == first.report.after.block_macs
    assert second.report.after.block_macs <= 0.6 * first.report.after.block_macs
    second.save(tmp_path / "second")
    loaded = stat_prune.load(tmp_path / "second")
    assert_same_weights(loaded, second.model)
    assert torch.equal(output(loaded, inputs), output(second.model, inputs))


def test_the_folder_holds_tokenizer_report_and_plan(prune, tmp_path, word_tokenizer):
    result = prune(FAMILIES[0].build(), MACs(0.6))
    result.save(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the cat sat")["input_ids"] == word_tokenizer("the cat sat")["input_ids"]
    report = json.loads((tmp_path / "out" / "stat_prune_report.json").read_text())
    assert report == json.loads(result.report.to_json())
    plan = json.loads((tmp_path / "out" / "stat_prune_plan.json").read_text())
    assert plan == result.plan
