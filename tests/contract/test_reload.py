"""A saved result loads to the bit in each way, and is an ordinary model afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, Family, completed, output
from isolation import outputs_without_stat_prune
from matrix import opening
from transformers import PreTrainedModel

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.families import find_blocks
from stat_prune.model.modeling_stat_prune import auto_class_of, auto_classes


@pytest.fixture(scope="session")
def prune(prune_unprobed):
    return prune_unprobed


def assert_same_weights(loaded: PreTrainedModel, model: PreTrainedModel) -> None:
    expected, actual = model.state_dict(), loaded.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


def auto_class(model: PreTrainedModel) -> str | None:
    """The auto class that makes models of this class; None where no one does."""
    made = {one.__name__ for one in auto_classes(type(model.config)).values()}
    name = type(model).__name__
    return auto_class_of(name, type(model.config)) if name in made else None


def test_every_head_class_loads_to_the_bit_in_both_ways(
    family: Family, head: str, prune, inputs, tmp_path
):
    model = family.build(head)
    result = prune(model, MACs(0.6))
    assert isinstance(result.model, type(model))
    assert type(result.model).__name__ == type(model).__name__
    assert type(result.model.config) is type(model.config)
    result.save(tmp_path / "out")
    ways = [stat_prune.load]
    if (auto := auto_class(result.model)) is not None:
        remote = getattr(transformers, auto).from_pretrained
        ways.append(lambda folder: remote(folder, trust_remote_code=True))
    # The last, as some heads look for the end of a sequence.
    one_token = {name: values[:1, -1:] for name, values in inputs.items()}
    for load in ways:
        loaded = load(tmp_path / "out")
        assert type(loaded).__name__ == family.class_name(head)
        assert_same_weights(loaded, result.model)
        assert torch.equal(output(loaded, inputs), output(result.model, inputs))
        # Where the config says all sizes, transformers makes a stock class of it, whose weights lie
        # where the file has them, and a single token rounds accordingly.
        if load is stat_prune.load or hasattr(loaded.config, "stat_prune"):
            assert torch.equal(output(loaded, one_token), output(result.model, one_token))


@pytest.mark.layouts
def test_a_model_that_was_loaded_before_it_was_pruned_loads_to_the_bit(
    family: Family, head: str, prune, tmp_path
):
    # transformers renames the weights of some families when it loads them.
    family.build(head).save_pretrained(tmp_path / "dense")
    result = prune(stat_prune.load(tmp_path / "dense"), MACs(0.6))
    result.save(tmp_path / "out")
    assert_same_weights(stat_prune.load(tmp_path / "out"), result.model)


@pytest.fixture(scope="module")
def alone(prune, inputs, tmp_path_factory, request):
    """Pruned models of all families, and what they give in a process without stat_prune."""
    wanted = request.config.getoption("families")

    def load(target: Callable[[Family], Any], *, remote_code: bool, **settings: Any):
        work = tmp_path_factory.mktemp("alone")
        folders, batches, expected = {}, {}, {}
        for family in FAMILIES:
            if wanted is not None and family.label not in wanted:
                continue
            model = family.build(family.heads[1])
            if auto_class(model) is None:  # as for CLIP's towers with a projection
                model = family.build()
            if target(family) is None:
                continue
            result = prune(model, target(family), **settings)
            folders[family.label] = (work / family.label, auto_class(result.model))
            result.save(work / family.label)
            batches[family.label] = completed(model, {"input_ids": inputs["input_ids"]})
            with torch.no_grad():
                expected[family.label] = result.model(**batches[family.label])[0]
        loaded = outputs_without_stat_prune(
            list(folders.values()), list(batches.values()), work, remote_code=remote_code
        )
        return folders, expected, dict(zip(folders, loaded, strict=True))

    return load


@pytest.fixture(scope="module")
def pruned_alone(alone):
    return alone(lambda _family: MACs(0.6), remote_code=True)


@pytest.fixture(scope="module")
def uniform_alone(alone):
    return alone(uniform_target, remote_code=False, uniform=True)


def test_the_folder_loads_to_the_bit_where_stat_prune_cannot_be_imported(
    family: Family, pruned_alone
):
    _, expected, loaded = pruned_alone
    assert torch.equal(loaded[family.label], expected[family.label])


def uniform_target(family: Family) -> Parameters | None:
    """What a config of this family can say; any number of heads only where it has a head size."""
    kinds = [kind for kind, how in opening(family).items() if how == "plain"]
    return Parameters(dict.fromkeys(kinds, 0.6)) if kinds else None


def test_uniform_results_load_in_plain_transformers_without_any_flag(family: Family, uniform_alone):
    folders, expected, loaded = uniform_alone
    if family.label not in folders:
        pytest.skip(f"the config of {family.name} can say neither heads nor neurons")
    assert_plain(folders[family.label][0])
    assert torch.equal(loaded[family.label], expected[family.label])


def test_what_no_config_can_say_needs_the_modeling_file(family: Family, prune, tmp_path):
    kinds = [kind for kind, how in opening(family).items() if how == "remote code"]
    for kind in kinds:
        result = prune(family.build(), Parameters({kind: 0.6}), uniform=True)
        result.save(tmp_path / kind)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        assert config["stat_prune"]["attributes" if kind == "heads" else "linear"]
        assert (tmp_path / kind / "modeling_stat_prune.py").exists()
    if not kinds:
        pytest.skip(f"the config of {family.label} can say all")


def assert_plain(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" not in config and "stat_prune" not in config
    assert not list(folder.glob("*.py"))


def test_uniform_gives_every_layer_the_same_sizes(family: Family, prune):
    result = prune(family.build(), MACs(0.5), uniform=True)
    sizes = {(b.part, b.num_units, b.num_groups) for b in find_blocks(result.model)}
    assert len(sizes) == len({block.part for block in find_blocks(result.model)})


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
