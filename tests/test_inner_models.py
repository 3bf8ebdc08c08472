"""A model inside of a larger one is pruned in place: the larger one is saved as what opens."""

from __future__ import annotations

import pytest
import torch
import transformers
from hand_pruned import IDS, cut, output
from tiny_models import SIZES, tiny_bert

import stat_prune
from stat_prune import MACs
from stat_prune.errors import ModelWarning

IDENTIFIERS = torch.randint(0, 64, (40, 20), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": ids} for ids in IDENTIFIERS]


def prune_inside(inner, **settings) -> None:
    stat_prune.prune(
        inner, DATA, **{"target": MACs(0.5), "inplace": True, "progress": False} | settings
    )


def tiny_llava():
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=4,
    )  # fmt: skip
    text = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=63)
    return transformers.LlavaForConditionalGeneration(config).eval()


def assert_opens(model, folder, auto_class) -> None:
    model.save_pretrained(folder)
    expected = output(model)
    for load in (
        lambda: auto_class.from_pretrained(folder, trust_remote_code=True),
        lambda: stat_prune.load(folder),
    ):
        assert torch.equal(output(load()), expected)


def test_a_classifier_whose_base_model_is_pruned_in_place_opens(tmp_path):
    model = tiny_bert(transformers.BertForSequenceClassification)
    prune_inside(model.bert)
    assert_opens(model, tmp_path / "out", transformers.AutoModelForSequenceClassification)


def test_a_vision_language_model_whose_language_model_is_pruned_in_place_opens(tmp_path):
    model = tiny_llava()
    prune_inside(model.model.language_model)
    assert_opens(model, tmp_path / "once", transformers.AutoModelForImageTextToText)
    prune_inside(model.model.language_model, target=MACs(0.6))
    assert_opens(model, tmp_path / "twice", transformers.AutoModelForImageTextToText)


def test_models_that_do_not_hold_the_pruned_one_stay_as_they_are():
    model, other = (tiny_bert(transformers.BertForSequenceClassification) for _ in range(2))
    prune_inside(model.bert)
    assert type(other) is transformers.BertForSequenceClassification
    assert not hasattr(other.config, "stat_prune")


def test_an_outer_class_of_ones_own_is_named_as_it_cannot_be_opened():
    class Mine(transformers.BertForSequenceClassification):
        pass

    model = tiny_bert(Mine)
    with pytest.warns(ModelWarning, match="inside of a Mine.*Save the result by itself"):
        prune_inside(model.bert)


def test_a_copy_that_is_pruned_leaves_the_outer_model_alone(tmp_path):
    model = tiny_bert(transformers.BertForSequenceClassification)
    before = output(model)
    prune_inside(model.bert, inplace=False)
    assert type(model) is transformers.BertForSequenceClassification
    assert torch.equal(output(model), before)


def test_an_equal_cut_inside_needs_no_class_of_ours(tmp_path):
    model = tiny_llava()
    inner = model.model.language_model
    cut(cut(inner, layer=0, kinds=("neurons",)), layer=1, kinds=("neurons",))
    model.save_pretrained(tmp_path / "out")
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert torch.equal(again(input_ids=IDS)[0], model(input_ids=IDS)[0])
