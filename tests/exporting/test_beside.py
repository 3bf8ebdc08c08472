"""What lies beside a model's weights comes along, or the save says what does not."""

from __future__ import annotations

import copy
import os
import warnings

import pytest
import torch
import transformers
from hand_pruned import build, pruned
from tiny_models import SIZES

import stat_prune
from stat_prune import MACs
from stat_prune.checkpoints.checkpoint import save_checkpoint
from stat_prune.errors import LeftBehindWarning

IMAGES = [{"pixel_values": torch.randn(3, 16, 16)} for _ in range(40)]


@pytest.fixture
def classifier(tmp_path):
    """A folder with a classifier of images, and what makes its inputs."""
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=16, patch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "dense")
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize("given", ["given", "in the folder"])
def test_an_image_processor_is_saved_and_a_pipeline_opens(classifier, tmp_path, given):
    processor = transformers.ViTImageProcessorPil.from_pretrained(classifier)
    model = transformers.AutoModelForImageClassification.from_pretrained(classifier)
    stat_prune.prune(
        model,
        IMAGES,
        target=MACs(0.6),
        tokenizer=processor if given == "given" else None,
        progress=False,
        output_dir=tmp_path / "out",
    )
    transformers.pipeline(
        "image-classification", model=str(tmp_path / "out"), trust_remote_code=True
    )


def test_a_processor_reads_texts_with_the_tokenizer_in_it(word_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(word_tokenizer)  # the processor writes its own name into it
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessorPil(size=16), tokenizer)
    words = ["the cat sat on the mat", "a dog ran", "it was very very very"] * 20
    result = stat_prune.prune(
        build("BertModel"), words, target=MACs(0.6), tokenizer=processor, progress=False
    )
    result.save(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert any((tmp_path / "out").glob("*processor_config.json"))


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and all kinds of things beside it."""
    build("BertModel").save_pretrained(tmp_path / "dense")
    texts = ("LICENSE", "preprocessor_config.json", "chat_template.jinja", "vocab.txt")
    for name in (*texts, "notes.txt", "train.py", "pytorch_model.bin", "secrets.json", ".env"):
        (tmp_path / "dense" / name).write_text(name)
    for name in (".git", "checkpoint-500", "results"):
        (tmp_path / "dense" / name).mkdir()
        (tmp_path / "dense" / name / "file").write_text("x")
    return tmp_path / "dense"


def test_what_is_known_comes_along_and_what_is_not_is_named(folder, tmp_path):
    model = transformers.AutoModel.from_pretrained(folder)
    with pytest.warns(
        LeftBehindWarning, match="notes.txt, results, secrets.json, train.py. Copy what does"
    ):
        save_checkpoint(tmp_path / "out", model=model)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "preprocessor_config.json", "chat_template.jinja", "vocab.txt"} < there
    others = {"notes.txt", "train.py", "pytorch_model.bin", "secrets.json", ".env", ".git"}
    assert not there & (others | {"checkpoint-500", "results"})


def test_a_tokenizer_that_is_given_takes_the_place_of_the_files_of_another(
    folder, tmp_path, word_tokenizer
):
    model = transformers.AutoModel.from_pretrained(folder)
    with pytest.warns(LeftBehindWarning):
        save_checkpoint(tmp_path / "out", model=model, tokenizer=word_tokenizer)
    assert not (tmp_path / "out" / "vocab.txt").exists()


def test_a_model_with_nothing_unknown_beside_it_is_saved_without_a_word(tmp_path):
    save_checkpoint(tmp_path / "first", model=pruned("BertModel"))
    model = stat_prune.load(tmp_path / "first")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftBehindWarning)
        save_checkpoint(tmp_path / "second", model=model)


def test_the_folder_is_found_again_after_the_process_has_changed_its_own(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = transformers.AutoModel.from_pretrained("dense")
    data = [{"input_ids": ids} for ids in torch.randint(0, 50, (60, 20))]
    result = stat_prune.prune(model, data, target=MACs(0.6), progress=False)
    os.chdir("/")
    with pytest.warns(LeftBehindWarning):
        result.save(tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").is_file()


@pytest.mark.parametrize("inplace", [False, True])
def test_a_pruned_model_goes_by_the_name_of_no_folder_and_then_of_its_own(tmp_path, inplace):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 2})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    data = [{"input_ids": ids} for ids in torch.randint(0, 64, (60, 20))]
    result = stat_prune.prune(dense, data, target=MACs(0.6), inplace=inplace, progress=False)
    assert result.model.name_or_path == result.model.config.name_or_path == ""
    assert result.report.settings["model"] == str(tmp_path / "dense")
    result.save(tmp_path / "out")
    assert result.model.name_or_path == str(tmp_path / "out")
    assert result.model.config.name_or_path == str(tmp_path / "out")
    if not inplace:
        assert dense.name_or_path == str(tmp_path / "dense")
