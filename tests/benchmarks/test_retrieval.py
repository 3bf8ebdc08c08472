"""Retrieval with sentence encoders, whole, pruned, without half of the layers, and in int8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from tiny_models import tiny_bert
from typer.testing import CliRunner

from harness import records
from stat_prune.errors import DataError
from stat_prune.families import transformer_layers

pytest.importorskip("sentence_transformers", reason="needs the extra `export`")
pytest.importorskip("transformers.exporters", reason="needs transformers with exporters")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

import retrieval


@pytest.fixture
def encoder(tmp_path, word_tokenizer) -> Path:
    tiny_bert().save_pretrained(tmp_path / "bert")
    word_tokenizer.save_pretrained(tmp_path / "bert")
    first = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[first, Pooling(32), Normalize()], device="cpu").save(
        str(tmp_path / "encoder")
    )
    return tmp_path / "encoder"


def test_half_of_the_layers_is_every_second_one():
    model = tiny_bert(num_hidden_layers=5)
    ids = torch.arange(12).reshape(2, 6)
    for first, kept in ((0, [0, 2, 4]), (1, [1, 3])):
        half = retrieval.with_layers(model, first)
        layers = transformer_layers(model)
        for ours, number in zip(transformer_layers(half), kept, strict=True):
            expected = layers[number].state_dict()
            assert all(torch.equal(ours.state_dict()[name], expected[name]) for name in expected)
        assert half.config.num_hidden_layers == len(kept)
        states = half(ids, output_hidden_states=True).hidden_states
        assert len(states) == 1 + len(kept)
    assert len(transformer_layers(model)) == 5


def test_questions_look_for_their_own_paragraph_among_all(at_hand):
    dev = at_hand / "data" / "squad" / "dev-v1.1.json"
    evaluator = retrieval.squad_evaluator(dev, 7, None, seed=0)

    content = json.loads(dev.read_text())["data"][0]["paragraphs"]
    contexts = {qa["id"]: entry["context"] for entry in content for qa in entry["qas"]}
    assert len(evaluator.queries_ids) == 7
    assert sorted(evaluator.corpus) == sorted(set(contexts.values()))
    corpus = dict(zip(evaluator.corpus_ids, evaluator.corpus, strict=True))
    for asked in evaluator.queries_ids:
        (number,) = evaluator.relevant_docs[asked]
        assert corpus[number] == contexts[asked]

    few = retrieval.squad_evaluator(dev, 100, 5, seed=0)
    assert len(few.corpus) == 5 and set(few.corpus) < set(evaluator.corpus)
    assert {contexts[asked] for asked in few.queries_ids} == set(few.corpus)


def test_calibration_reads_the_train_split_alone(at_hand):
    def paragraphs(split: str) -> set[str]:
        content = json.loads((at_hand / "data" / "squad" / f"{split}-v1.1.json").read_text())
        return {entry["context"] for entry in content["data"][0]["paragraphs"]}

    texts = set(retrieval.calibration_texts(at_hand / "data" / "squad" / "train-v1.1.json"))
    assert paragraphs("train") < texts
    assert not texts & paragraphs("dev")


def test_nano_beir_that_is_not_at_hand_is_said_so(monkeypatch):
    def missing(*_args, **_options):
        raise ConnectionError("offline")

    monkeypatch.setattr(retrieval, "NanoBEIREvaluator", missing)
    with pytest.raises(DataError, match="NanoBEIR's scifact is neither .*offline"):
        retrieval.nano_beir_evaluator("scifact")


@pytest.mark.slow
def test_each_model_is_scored_as_sentence_transformers_does(at_hand, encoder, tmp_path):
    app = typer.Typer()
    app.command()(retrieval.main)
    arguments = ["--model", encoder, "--questions", 20, "--budget", 0.5, "--samples", 40]
    arguments += ["--shape", "2x16", "--rounds", 2, "--output", tmp_path / "out"]

    result = CliRunner().invoke(app, [str(one) for one in arguments])

    assert result.exit_code == 0, result.output
    found = {}
    for path in (tmp_path / "out").glob("*.json"):
        content = json.loads(path.read_text())
        found[content["method"]] = records.read(path, content["conditions"])
    assert set(found) == {"stat", *retrieval.HALVES, "dense-int8", "stat-int8"}
    dev = at_hand / "data" / "squad" / "dev-v1.1.json"
    evaluator = retrieval.squad_evaluator(dev, 20, None, seed=0)
    whole = SentenceTransformer(str(encoder), device="cpu")
    expected = retrieval.scores_of(evaluator, whole)
    for one in found.values():
        assert one["details"]["dense"] == pytest.approx(expected, abs=1e-6)
    half = SentenceTransformer(str(encoder), device="cpu")
    model = half[0].auto_model if hasattr(half[0], "auto_model") else half[0].model
    model.encoder.layer = model.encoder.layer[1::2]
    details = found["second-of-two-layers"]["details"]["0.5"]
    assert details == pytest.approx(retrieval.scores_of(evaluator, half), abs=1e-6)
    assert found["second-of-two-layers"]["sizes"]["0.5"]["kept_macs"] == 0.5
    assert found["stat"]["sizes"]["0.5"]["kept_macs"] <= 0.55
    assert found["stat"]["settings"]["num_calibration_samples"] == 40
    sizes = {name: one["measures"] for name, one in found.items()}
    assert sizes["stat-int8"]["0.5"]["bytes"] < sizes["stat"]["0.5"]["bytes"]
    assert sizes["dense-int8"]["1"]["bytes"] < sizes["dense-int8"]["dense"]["bytes"]
    assert all(
        one["measures"][kept]["speed_up"] > 0 for one in found.values() for kept in one["scores"]
    )
    assert "| 0.5 | stat-int8 |" in (tmp_path / "out" / "retrieval.md").read_text()
