"""What is loaded is all that was saved, or it is an error."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hand_pruned import assert_same_model, build, cut, pruned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama

import stat_prune
from stat_prune.checkpoints.checkpoint import save_checkpoint
from stat_prune.errors import LoadError, StatPruneError

MODELS = pytest.mark.parametrize("class_name", ["BertForMaskedLM", "LlamaForCausalLM"])
ANY_WEIGHT = "layers.1.mlp.up_proj.weight", "layer.1.intermediate.dense.weight"


def saved(tmp_path: Path, class_name: str) -> Path:
    save_checkpoint(tmp_path / "out", model=pruned(class_name))
    return tmp_path / "out"


def change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def a_weight(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if name.endswith(ANY_WEIGHT))


@MODELS
def test_a_missing_weight_is_an_error_that_names_it(class_name, tmp_path):
    folder = saved(tmp_path, class_name)
    change_weights(folder, lambda tensors: tensors.pop(a_weight(tensors)))
    with pytest.raises(LoadError, match=r"lacks 1 weights of the .* such as .*\.1\."):
        stat_prune.load(folder)


@MODELS
def test_a_missing_layer_is_an_error_for_other_heads_too(class_name, tmp_path):
    folder = saved(tmp_path, class_name)
    change_weights(folder, lambda tensors: tensors.pop(a_weight(tensors)))
    with pytest.raises(LoadError, match="lacks 1 weights"):
        stat_prune.load(folder, auto_class="AutoModelForSequenceClassification")


@MODELS
def test_an_extra_weight_is_an_error_that_names_it(class_name, tmp_path):
    folder = saved(tmp_path, class_name)
    change_weights(folder, lambda tensors: tensors.update(stranger=torch.ones(3)))
    with pytest.raises(LoadError, match="no place for, such as stranger"):
        stat_prune.load(folder)


@MODELS
@pytest.mark.parametrize("number", [1, 3, 10**9])
def test_a_number_of_layers_that_does_not_fit_is_an_error(class_name, number, tmp_path):
    folder = saved(tmp_path, class_name)
    change_config(folder, num_hidden_layers=number)
    with pytest.raises(LoadError):
        stat_prune.load(folder)


def test_fewer_layers_than_an_unpruned_folder_has_are_an_error(tmp_path):
    tiny_llama(num_hidden_layers=3).save_pretrained(tmp_path / "dense")
    change_config(tmp_path / "dense", num_hidden_layers=2)
    with pytest.raises(LoadError, match=r"no place for, such as model\.layers\.2\."):
        stat_prune.load(tmp_path / "dense")


def test_a_head_of_pretraining_that_a_plain_folder_has_besides_is_no_error(tmp_path):
    build("BertForMaskedLM").save_pretrained(tmp_path / "dense")
    change_weights(
        tmp_path / "dense",
        lambda tensors: tensors.update({"cls.seq_relationship.weight": torch.ones(2, 32)}),
    )
    assert_same_model(stat_prune.load(tmp_path / "dense"), build("BertForMaskedLM"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_not_read(name, tmp_path):
    model = build("BertModel")
    model.config.save_pretrained(tmp_path)
    change_config(tmp_path, architectures=["BertModel"])
    torch.save(model.state_dict(), tmp_path / name)
    with pytest.raises(LoadError, match=r"pickled weights \(.bin, .pt\) can run code"):
        stat_prune.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"bert"', "\x00", "{}", '{"model_type": "none"}']
)
def test_a_broken_config_is_an_error_that_names_the_file(text, tmp_path):
    folder = saved(tmp_path, "BertModel")
    (folder / "config.json").write_text(text)
    with pytest.raises(LoadError, match=r"config\.json"):
        stat_prune.load(folder)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["bert", "llama", "gelu", "float16", "LlamaForCausalLM"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something is in nested dicts and lists."""
    found = [path] if path else []
    inner: Any = value.items() if isinstance(value, dict) else ()
    for key, one in enumerate(value) if isinstance(value, list) else inner:
        found += places(one, (*path, key))
    return found


@pytest.fixture(scope="module", params=["BertForMaskedLM", "LlamaForCausalLM", "plain Llama"])
def example(request, tmp_path_factory) -> tuple[Path, dict[str, Any], Any]:
    """A saved folder, its config and its model."""
    folder = tmp_path_factory.mktemp("example") / "out"
    if request.param == "plain Llama":
        model = build("LlamaForCausalLM")
        cut(model, layer=0)
        model = cut(model, layer=1)
    else:
        model = pruned(request.param)
    save_checkpoint(folder, model=model)
    return folder, json.loads((folder / "config.json").read_text()), model


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_whatever_config_json_says_loading_is_right_or_one_error(example, data):
    folder, config, model = example
    changed = copy.deepcopy(config)
    for _ in range(data.draw(st.integers(1, 2))):
        (*owner, key) = data.draw(st.sampled_from(places(changed)))
        holder: Any = changed
        for step in owner:
            holder = holder[step]
        if data.draw(st.booleans()):
            holder[key] = data.draw(VALUES)
        else:
            del holder[key]
    (folder / "config.json").write_text(json.dumps(changed))
    try:
        loaded = stat_prune.load(folder)
    except StatPruneError:
        return
    wanted = model.state_dict()
    # It may be told to have another dtype.
    if changed.get("dtype") == config["dtype"]:
        for name, tensor in loaded.state_dict().items():
            assert name not in wanted or torch.equal(tensor, wanted[name]), name


def test_plain_transformers_reads_what_it_always_has(tmp_path):
    model = pruned("LlamaForCausalLM")
    save_checkpoint(tmp_path / "out", model=model)
    auto = transformers.AutoModelForCausalLM
    assert_same_model(auto.from_pretrained(tmp_path / "out", trust_remote_code=True), model)


RECORDS: dict[str, tuple[str, str, Any]] = {
    "a count that the weights have not": ("attention.self", "num_attention_heads", 1),
    "none": ("attention.self", "num_attention_heads", 0),
    "a text": ("attention.self", "num_attention_heads", "2"),
    "a method": ("attention.self", "forward", 3),
}


@pytest.mark.parametrize("wrong", RECORDS)
def test_counts_of_a_record_that_are_not_those_of_the_weights_are_an_error(wrong, tmp_path):
    folder = saved(tmp_path, "BertModel")
    part, name, value = RECORDS[wrong]
    record = json.loads((folder / "config.json").read_text())["stat_prune"]
    record["attributes"].setdefault(f"encoder.layer.0.{part}", {})[name] = value
    change_config(folder, stat_prune=record)
    with pytest.raises(LoadError, match=rf"does not fit the weights: {name} of .* is"):
        stat_prune.load(folder)


def test_a_record_of_layers_without_heads_that_have_some_is_an_error(tmp_path):
    folder = saved(tmp_path, "BertModel")
    record = json.loads((folder / "config.json").read_text())["stat_prune"]
    change_config(folder, stat_prune=record | {"no_heads": {"encoder.layer.0.attention.self": {}}})
    with pytest.raises(LoadError, match="encoder.layer.0.attention.self has heads"):
        stat_prune.load(folder)


@pytest.mark.parametrize("name", ["../dense.safetensors", "/etc/passwd", 5, ["x"], None])
def test_an_index_of_files_elsewhere_is_an_error_that_reads_none(name, tmp_path):
    folder = saved(tmp_path, "BertModel")
    (folder / "model.safetensors").rename(tmp_path / "dense.safetensors")
    index = {"weight_map": {"embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"index.json' is damaged"):
        stat_prune.load(folder)
