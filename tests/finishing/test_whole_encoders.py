"""Models of sentence-transformers are finished whole, for their embeddings or scores."""

from __future__ import annotations

import json
import random
import shutil
import sys

import pytest
import torch
import transformers
from tiny_models import tiny_bert
from typer.testing import CliRunner

import stat_prune
from stat_prune import MACs
from stat_prune.cli import app
from stat_prune.errors import LoadError, ModelError, SettingsError
from stat_prune.measuring.objectives import relative_error
from stat_prune.measuring.sentence_embeddings import SentenceEmbeddings

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="needs sentence-transformers (the extra `export`)"
)

_SOURCE = random.Random(0)
WORDS = [
    " ".join(_SOURCE.choices("the a cat dog bird sat ran on mat".split(), k=9)) for _ in "x" * 48
]
PRUNE = {
    "target": MACs(0.5),
    "method": "magnitude",
    "num_calibration_samples": 16,
    "progress": False,
}


@pytest.fixture(scope="module")
def folder(word_tokenizer, tmp_path_factory):
    """Of a tiny encoder; what is behind its pooling reads three of its dimensions alone."""
    modules = pytest.importorskip("sentence_transformers.models")
    place = tmp_path_factory.mktemp("encoders")
    tiny_bert().save_pretrained(place / "transformer")
    word_tokenizer.save_pretrained(place / "transformer")
    dense = modules.Dense(32, 3, bias=False, activation_function=torch.nn.Identity())
    with torch.no_grad():
        dense.linear.weight.copy_(torch.eye(3, 32))
    transformer = modules.Transformer(str(place / "transformer"), max_seq_length=11)
    encoder = sentence_transformers.SentenceTransformer(
        modules=[transformer, modules.Pooling(32, "mean"), dense], device="cpu"
    )
    encoder.save(str(place / "whole"))
    return place / "whole"


def opened(folder, kind="SentenceTransformer"):
    return getattr(sentence_transformers, kind)(str(folder), device="cpu", trust_remote_code=True)


def far(dense, other):
    before, after = (one.encode(WORDS, convert_to_tensor=True) for one in (dense, other))
    return float(relative_error(before, after).mean())


def finish(*given, **options):
    return stat_prune.finish(*given, WORDS, num_calibration_samples=200, progress=False, **options)


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(scope="module")
def pruned(folder, tmp_path_factory):
    """A result, and the folder that it was saved in."""
    result = stat_prune.prune(opened(folder), WORDS, **PRUNE)
    place = tmp_path_factory.mktemp("pruned") / "out"
    result.save(place)
    return result, place


def test_a_sentence_encoder_is_finished_whole_for_its_embeddings(folder, pruned, tmp_path):
    result, _ = pruned
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    done = finish(result)
    assert type(done.model) is sentence_transformers.SentenceTransformer
    assert done.report.finish.objective == "SentenceEmbeddings.distance"
    assert done.report.finish.taken > 0
    assert far(opened(folder), done.model) < far(opened(folder), result.model)
    assert all(map(torch.equal, before.values(), result.model.state_dict().values()))
    done.save(tmp_path / "finished")
    found = opened(tmp_path / "finished")
    expected = done.model.encode(WORDS, convert_to_tensor=True)
    assert torch.equal(found.encode(WORDS, convert_to_tensor=True), expected)


def test_its_card_says_what_was_fitted_and_says_it_once(pruned, tmp_path):
    result, _ = pruned
    done = finish(finish(result))
    done.model.save_pretrained(str(tmp_path / "published"))
    card = (tmp_path / "published" / "README.md").read_text()
    assert card.count("Heads and neurons were removed") == 1
    assert card.count("Finish: scales") == 2
    assert "nothing was trained" not in card


def test_a_teacher_may_be_whole_a_transformer_or_where_it_is(folder, pruned):
    result, place = pruned
    expected = finish(result).model
    teachers = [opened(folder), transformers.AutoModel.from_pretrained(folder), folder]
    for teacher in teachers:
        for given in (result, place):
            assert same(finish(given, teacher=teacher).model, expected)


def test_the_command_line_finishes_its_folder_whole(folder, pruned, tmp_path):
    _, place = pruned
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    given = ["-d", tmp_path / "texts.txt", "--teacher", folder, "-o", tmp_path / "out"]
    given += ["--num-calibration-samples", 200]
    arguments = ["finish", place, *given]
    done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert same(opened(tmp_path / "out"), finish(place, teacher=folder).model)


def test_what_the_transformer_was_loaded_from_may_have_a_head(word_tokenizer, tmp_path):
    """As an encoder has that sentence-transformers makes of a masked language model."""
    tiny_bert(transformers.BertForMaskedLM).save_pretrained(tmp_path / "masked")
    word_tokenizer.save_pretrained(tmp_path / "masked")
    modules = pytest.importorskip("sentence_transformers.models")
    transformer = modules.Transformer(str(tmp_path / "masked"))
    encoder = sentence_transformers.SentenceTransformer(
        modules=[transformer, modules.Pooling(32, "mean")], device="cpu"
    )
    done = finish(stat_prune.prune(encoder, WORDS, **PRUNE))
    assert done.report.finish.taken > 0


def test_an_objective_that_is_asked_for_is_that_of_the_transformer(pruned):
    result, _ = pruned
    done = finish(result, objective="hidden-states")
    assert done.report.finish.objective == "hidden-states"
    assert "distance of hidden-states on" in str(done.report)
    assert type(done.model) is sentence_transformers.SentenceTransformer
    assert not same(done.model, finish(result).model)


def test_rerankers_and_sparse_encoders_are_finished_whole(word_tokenizer, tmp_path):
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    for head in ("BertForSequenceClassification", "BertForMaskedLM"):
        tiny_bert(getattr(transformers, head)).save_pretrained(tmp_path / head)
        word_tokenizer.save_pretrained(tmp_path / head)
    transformer = sentence_transformers.base.modules.Transformer(
        str(tmp_path / "BertForMaskedLM"), transformer_task="fill-mask"
    )
    encoders = [
        sentence_transformers.CrossEncoder(
            str(tmp_path / "BertForSequenceClassification"), device="cpu"
        ),
        sentence_transformers.SparseEncoder(
            modules=[transformer, modules.SpladePooling()], device="cpu"
        ),
    ]
    for whole, objective in zip(encoders, (None, "SentenceEmbeddings.distance"), strict=True):
        kind = type(whole).__name__
        result = stat_prune.prune(whole, WORDS, **PRUNE)
        done = finish(result)
        assert done.report.finish.taken > 0 and done.report.finish.objective == objective
        assert type(done.model) is type(whole)
        result.save(tmp_path / kind)
        again = finish(tmp_path / kind, teacher=whole)
        assert type(again.model) is type(whole) and same(again.model, done.model)


def test_one_that_was_pruned_as_a_transformer_is_an_encoder_in_its_folder(folder, tmp_path):
    result = stat_prune.prune(transformers.AutoModel.from_pretrained(folder), WORDS,
                              tokenizer=str(folder), **PRUNE)  # fmt: skip
    result.save(tmp_path / "out")
    done = finish(tmp_path / "out", teacher=folder)
    assert type(done.model) is sentence_transformers.SentenceTransformer
    assert done.report.finish.objective == "SentenceEmbeddings.distance"


def test_without_the_library_its_transformer_is_finished_where_that_is_meant(
    folder, pruned, monkeypatch
):
    _, place = pruned
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(LoadError, match=r"pip install sentence-transformers.*'hidden-states'"):
        finish(place, teacher=folder)
    done = finish(place, teacher=folder, objective="hidden-states")
    assert type(done.model).__name__ == "BertModel" and done.report.finish.taken > 0


def test_a_transformer_that_was_pruned_for_embeddings_needs_what_is_behind_it(folder, tmp_path):
    model = transformers.AutoModel.from_pretrained(folder)
    objective = SentenceEmbeddings(opened(folder)).distance
    result = stat_prune.prune(model, WORDS, tokenizer=str(folder), objective=objective, **PRUNE)
    with pytest.raises(SettingsError, match="Pass the dense one whole"):
        finish(result)
    done = finish(result, teacher=opened(folder))
    assert done.report.finish.objective == "SentenceEmbeddings.distance"
    assert type(done.model).__name__ == "BertModel"


def test_a_teacher_without_a_transformer_is_refused(pruned):
    modules = pytest.importorskip("sentence_transformers.models")
    bow = sentence_transformers.SentenceTransformer(modules=[modules.BoW(["cat"])], device="cpu")
    with pytest.raises(ModelError, match="holds no model of transformers"):
        finish(pruned[0], teacher=bow)


def test_a_damaged_encoder_is_said_to_be(folder, pruned, tmp_path):
    shutil.copytree(pruned[1], tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "modules.json").read_text())
    listed[1]["type"] = "sentence_transformers.nothing.Nothing"
    (tmp_path / "out" / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(LoadError, match="does not open it"):
        finish(tmp_path / "out", teacher=folder)
