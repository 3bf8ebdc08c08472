"""Folders that lack what their config names: a head, or the words of a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from transformers import AutoTokenizer, BertForMaskedLM
from typer.testing import CliRunner

import stat_prune
from stat_prune.checkpoints.pretrained import load_pretrained, load_tokenizer
from stat_prune.cli import app
from stat_prune.errors import DataError, LoadError, SettingsError

TEXTS = ["the cat sat on the mat", "a dog ran under the house", "the bird flew over a tree"] * 12


@pytest.fixture
def encoder(tmp_path, word_tokenizer) -> Path:
    """As many lie on the Hub: a base model whose config names the class of its pre-training."""
    folder = tmp_path / "encoder"
    tiny_bert().save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def assert_base_model(model: torch.nn.Module) -> None:
    assert type(model).__name__ == "BertModel"
    wanted, found = tiny_bert().state_dict(), model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_sentence_encoder_without_the_head_of_its_config_is_its_base_model(encoder):
    assert_base_model(stat_prune.load(encoder))
    assert_base_model(load_pretrained(str(encoder)))


def test_with_the_head_it_is_the_class_of_its_config(encoder):
    tiny_bert(BertForMaskedLM).save_pretrained(encoder)
    assert type(stat_prune.load(encoder)).__name__ == "BertForMaskedLM"


def test_what_is_no_sentence_encoder_and_lacks_its_head_is_an_error_with_the_remedy(encoder):
    (encoder / "modules.json").unlink()
    with pytest.raises(LoadError, match=r"lacks .* such as cls\..*--auto-class AutoModel"):
        load_pretrained(str(encoder))
    assert_base_model(load_pretrained(str(encoder), "AutoModel"))


@pytest.mark.parametrize("how", [[], ["--layer-at-a-time"]], ids=["whole", "layer at a time"])
@pytest.mark.parametrize("asked", [False, True], ids=["found", "asked for"])
def test_the_command_line_prunes_it(encoder, tmp_path, how, asked):
    if asked:
        (encoder / "modules.json").unlink()
        how = [*how, "--auto-class", "AutoModel"]
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    arguments = ["-d", str(tmp_path / "texts.txt"), "--macs", "0.7", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(
        app, ["prune", str(encoder), *arguments, "--effort", "fast", *how], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert type(stat_prune.load(tmp_path / "out")).__name__ == "BertModel"
    assert (tmp_path / "out" / "modules.json").exists() == (not asked)


@pytest.fixture
def on_the_hub(monkeypatch, tmp_path):
    """Let a folder be the local copy of the repository somebody/model."""

    def publish(folder: Path) -> str:
        place = tmp_path / "cache" / "models--somebody--model"
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0" * 40)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        return "somebody/model"

    return publish


def test_a_sentence_encoder_of_the_hub_is_its_base_model_too(encoder, on_the_hub):
    assert_base_model(load_pretrained(on_the_hub(encoder)))


def test_a_model_of_the_hub_that_lacks_weights_is_an_error_and_not_random(encoder, on_the_hub):
    (encoder / "modules.json").unlink()
    name = on_the_hub(encoder)
    with pytest.raises(LoadError, match=r"'somebody/model' lacks .*--auto-class AutoModel"):
        load_pretrained(name)
    assert_base_model(load_pretrained(name, "AutoModel"))


@pytest.fixture(params=[tiny_bert, tiny_llama])
def without_tokenizer(request, tmp_path) -> Path:
    request.param().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_without_tokenizer_has_none_on_the_hub_and_in_a_folder(
    without_tokenizer, on_the_hub
):
    assert load_tokenizer(str(without_tokenizer)) is None
    assert load_tokenizer(on_the_hub(without_tokenizer)) is None


@pytest.mark.parametrize("published", [False, True], ids=["folder", "hub"])
def test_texts_for_a_model_without_tokenizer_are_one_error(
    without_tokenizer, on_the_hub, tmp_path, word_tokenizer, published
):
    name = on_the_hub(without_tokenizer) if published else str(without_tokenizer)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    arguments = ["prune", name, "-d", str(tmp_path / "texts.txt"), "--macs", "0.7"]
    arguments += ["-o", str(tmp_path / "out"), "--effort", "fast"]
    with pytest.raises(DataError, match=r"there is no tokenizer.*--tokenizer"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    word_tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments += ["--tokenizer", str(tmp_path / "tokenizer")]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert load_tokenizer(str(tmp_path / "out")) is not None


def test_a_tokenizer_made_of_a_config_alone_knows_no_words_and_is_refused(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "model")
    empty = AutoTokenizer.from_pretrained(tmp_path / "model")
    with pytest.raises(SettingsError, match="knows no words"):
        stat_prune.prune(
            tiny_bert(), TEXTS, tokenizer=empty, target=stat_prune.MACs(0.6), progress=False
        )
