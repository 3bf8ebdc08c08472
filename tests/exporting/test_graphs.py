"""Graphs for ONNX Runtime and OpenVINO give what the model gives in torch."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hand_pruned import cut, pruned
from inputs import random_batch
from tiny_models import tiny_bert
from transformers import BertModel, PreTrainedModel

from stat_prune.errors import SettingsError, UnsupportedArchitectureError
from stat_prune.exporting import export
from stat_prune.exporting.sentence_pooling import with_pooling

pytest.importorskip("transformers.exporters", reason="needs transformers with exporters")
from transformers.exporters import ExportedModel

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}
FORMS = [
    pytest.param(
        to,
        marks=pytest.mark.skipif(
            any(find_spec(name) is None for name in names),
            reason=f"needs {', '.join(names)} (the extra `{to}`)",
        ),
    )
    for to, names in NEEDS.items()
]
# OpenVINO may compute in bfloat16 where the processor can, and says f32 all the same.
TOLERANCE = {"onnx": 1e-4, "openvino": 0.05}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def run(folder: Path, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(ExportedModel.from_pretrained(folder)(**batch).items())


# A base model in one form and a head in the other, as an export takes long.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to"),
    [
        pytest.param(name, *form.values, marks=form.marks)
        for name, form in zip(["BertModel", "RobertaForTokenClassification"], FORMS, strict=True)
    ],
)
def test_an_encoder_gives_the_same_for_other_shapes(name, to, tmp_path, capsys):
    model = pruned(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what exporters say of themselves is not for users
        export(model, tmp_path / "out", to)
    assert capsys.readouterr().out == ""  # where `--json` prints one object
    batch = random_batch(3, 9, seed=1)
    with torch.no_grad():
        expected = model(**batch)
    found = run(tmp_path / "out", batch)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert float((found[key] - value).abs().max()) <= TOLERANCE[to]


def sentence_encoder(folder: Path, word_tokenizer, pooling: dict, *after: str) -> PreTrainedModel:
    """A pruned BERT in a folder as sentence-transformers writes it."""
    cut(tiny_bert(num_attention_heads=4)).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *after]
    places = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], start=1))]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": place,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for i, (place, kind) in enumerate(zip(places, kinds, strict=True))
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    import stat_prune

    return stat_prune.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMS)
def test_pooling_and_normalization_of_a_sentence_encoder_are_in_the_graph(
    to, word_tokenizer, tmp_path
):
    means = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    model = sentence_encoder(tmp_path / "model", word_tokenizer, means, "Normalize")
    exported = export(model, tmp_path / "out", to, tokenizer=word_tokenizer)
    assert exported.notes == ()
    batch = dict(word_tokenizer(["the cat sat", "a dog"], padding=True, return_tensors="pt"))
    with torch.no_grad():
        states = model(**batch)[0]
    masks = batch["attention_mask"].bool()
    rows = [state[mask].mean(0) for state, mask in zip(states, masks, strict=True)]
    expected = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    found = run(tmp_path / "out", batch)["sentence_embedding"]
    assert float((found - expected).abs().max()) <= TOLERANCE[to]


@pytest.mark.parametrize("way", ["mean_tokens", "cls_token", "max_tokens"])
def test_tokens_are_pooled_as_the_folder_says(way, word_tokenizer, tmp_path):
    pooling = {f"pooling_mode_{one}": one == way for one in ("mean_tokens", "cls_token")}
    pooling[f"pooling_mode_{way}"] = True
    model = sentence_encoder(tmp_path / "model", word_tokenizer, pooling)
    whole, notes = with_pooling(model)
    assert notes == []
    batch = dict(word_tokenizer(["the cat sat", "a dog"], padding=True, return_tensors="pt"))
    with torch.no_grad():
        states, found = model(**batch)[0], whole(**batch)["sentence_embedding"]
    tokens = [one[m] for one, m in zip(states, batch["attention_mask"].bool(), strict=True)]
    pooled = {
        "mean_tokens": lambda one: one.mean(0),
        "cls_token": lambda one: one[0],
        "max_tokens": lambda one: one.amax(0),
    }
    torch.testing.assert_close(found, torch.stack([pooled[way](one) for one in tokens]))


@pytest.mark.slow
def test_modules_that_are_not_in_the_graph_are_said(word_tokenizer, tmp_path):
    means = {"pooling_mode_mean_tokens": True}
    model = sentence_encoder(tmp_path / "model", word_tokenizer, means, "Dense")
    (tmp_path / "model" / "2_Dense").mkdir()
    exported = export(model, tmp_path / "out", "onnx", tokenizer=word_tokenizer)
    assert "Pooling, Dense" in exported.notes[0]


@pytest.mark.parametrize("to", FORMS)
def test_what_is_not_written_is_refused_before_anything_is(to, tmp_path):
    with pytest.raises(UnsupportedArchitectureError, match="q8_0"):
        export(pruned("LlamaForCausalLM"), tmp_path / "out", to, type="int8")
    with pytest.raises(SettingsError, match="f32, int8"):
        export(pruned("BertModel"), tmp_path / "out", to, type="int4")
    if to == "openvino":
        with pytest.raises(SettingsError, match="calibration="):
            export(pruned("BertModel"), tmp_path / "out", to, type="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMS)
def test_eight_bits_are_smaller_and_near(to, word_tokenizer, tmp_path):
    model = cut(tiny_bert(BertModel, hidden_size=64, intermediate_size=256))
    texts = ["the cat sat on the mat", "a dog ran under the house", "it was a bird"] * 4
    calibration = {"calibration": texts} if to == "openvino" else {}
    for type in ("f32", "int8"):
        options = calibration if type == "int8" else {}
        export(model, tmp_path / type, to, tokenizer=word_tokenizer, type=type, **options)
    batch = dict(word_tokenizer(texts[:3], padding=True, return_tensors="pt"))
    with torch.no_grad():
        expected = model(**batch)[0]
    found = run(tmp_path / "int8", batch)["last_hidden_state"]
    real = batch["attention_mask"].bool()
    assert float((found - expected)[real].norm() / expected[real].norm()) <= 0.1
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / type).glob("*model*") if file.is_file())
        for type in ("f32", "int8")
    ]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_the_graph_of_a_decoder_goes_on_from_its_cache(tmp_path):
    import onnxruntime

    model = pruned("LlamaForCausalLM")
    export(model, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "decode.onnx")
    ids = random_batch(2, 9)["input_ids"]
    cache = {
        one.name: torch.zeros(2, heads, 0, 8).numpy()
        for one, heads in zip(session.get_inputs()[2:], (2, 2, 2, 2), strict=True)
    }
    found = []
    for part, start in ((ids[:, :6], 0), (ids[:, 6:8], 6), (ids[:, 8:], 8)):
        places = torch.arange(start, start + part.shape[1]).expand_as(part)
        feed = {"input_ids": part.numpy(), "position_ids": places.numpy(), **cache}
        logits, *states = session.run(None, feed)
        found.append(torch.from_numpy(logits))
        cache = dict(zip(cache, states, strict=True))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    assert float((torch.cat(found, dim=1) - expected).abs().max()) <= 1e-4
