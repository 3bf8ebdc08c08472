"""What cannot be pruned layer by layer is refused, in one sentence and before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from contract.families import FAMILIES, Family
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama

import stat_prune
from stat_prune.errors import (
    LoadError,
    ModelError,
    NonFiniteWeightsError,
    SaveError,
    SettingsError,
    TargetError,
)

DATA = [{"input_ids": torch.arange(4, 20)}] * 20


@pytest.fixture
def dense(tmp_path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "dense", max_shard_size="10KB")
    return tmp_path / "dense"


def prune(dense: Path, **options):
    settings = {"target": stat_prune.MACs(0.6), "progress": False} | options
    return stat_prune.prune_checkpoint(dense, DATA, output_dir=dense.parent / "out", **settings)


def refused(dense: Path, error: type[Exception], match: str, **options) -> None:
    with pytest.raises(error, match=match):
        prune(dense, **options)
    assert [path.name for path in dense.parent.iterdir()] == ["dense"]


def a_shard(dense: Path) -> Path:
    return sorted(dense.glob("*.safetensors"))[2]


def test_a_missing_shard(dense):
    a_shard(dense).unlink()
    refused(dense, LoadError, "lacks 1 of the .* shards that its index names, such as model-00003")


def test_a_shard_that_was_cut_off(dense):
    shard = a_shard(dense)
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(dense, LoadError, "model-00003.* is damaged .*Download or copy")


def test_an_index_that_is_no_json(dense):
    (dense / "model.safetensors.index.json").write_text("{")
    refused(dense, LoadError, "index.json.* is damaged")


def test_a_weight_that_no_file_has(dense):
    shard = a_shard(dense)
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors["unknown"] = tensors.pop(name)
    save_file(tensors, shard, metadata={"format": "pt"})
    refused(dense, LoadError, f"no weights for 1 parameters of LlamaForCausalLM, such as {name}")


def test_a_weight_of_another_shape(dense):
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"vocab_size": 65}))
    with pytest.raises(LoadError, match=r"has the shape \(64, 32\), but config.json.*\(65, 32\)"):
        prune(dense)


def test_a_checkpoint_without_safetensors(tmp_path):
    (tmp_path / "dense").mkdir()
    refused(tmp_path / "dense", LoadError, "has neither model.safetensors nor")


def test_weights_that_are_not_finite(dense):
    shard = next(
        s for s in dense.glob("*.safetensors") if any("1.mlp.up_proj" in k for k in load_file(s))
    )
    tensors = load_file(shard)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, shard, metadata={"format": "pt"})
    match = r"1 weights .*model\.layers\.1\.mlp\.up_proj\.weight \(1 entries.*\(3, 5\): nan"
    refused(dense, NonFiniteWeightsError, match)


def test_an_output_folder_that_exists(dense):
    (dense.parent / "out").mkdir()
    with pytest.raises(SaveError, match="exists; pass overwrite=True"):
        prune(dense)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "kprune"}, SettingsError, "more than one layer's inputs"),
        ({"method": "attention-entropy"}, SettingsError, "more than one layer's inputs"),
        ({"passes": 2}, SettingsError, "second pass needs the whole model"),
        ({"method": "stat-two-pass"}, SettingsError, "second pass needs the whole model"),
        ({"target": stat_prune.Speedup(2.0)}, TargetError, "needs the whole model in memory"),
        ({"target": stat_prune.MACs(0.01)}, TargetError, "below the least"),
        ({"inplace": True}, SettingsError, "inplace"),
    ],
    ids=str,
)
def test_settings_that_need_the_whole_model(options, error, match, dense):
    refused(dense, error, match, **options)


REFUSED = ("Albert", "Bart", "T5", "Whisper", "CLIP")


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name in REFUSED], ids=lambda family: family.label
)
def test_families_whose_layers_are_not_one_chain_of_their_own(family: Family, tmp_path):
    family.build().save_pretrained(tmp_path / "dense")
    refused(
        tmp_path / "dense",
        ModelError,
        "several stacks|shares weights",
    )
