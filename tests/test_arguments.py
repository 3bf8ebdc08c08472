"""Arguments are taken where it is plain what is meant; else one error names value and remedy."""

from __future__ import annotations

import copy
import shutil
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_bert

import stat_prune
from stat_prune import MACs, Parameters, Speedup, StatPruneError, Tolerance
from stat_prune.attention import head_statistics
from stat_prune.checkpoints.pretrained import load_tokenizer
from stat_prune.errors import LoadError, ModelError, SaveError, SettingsError, TargetError
from stat_prune.settings.settings import Settings
from stat_prune.vib import VIBConfig, vib_finetune

TEXTS = ["the cat sat on the mat", "a dog ran under the house", "the bird flew over a tree"] * 12


@pytest.fixture(scope="module")
def model():
    return tiny_bert()


@pytest.fixture(scope="module")
def folder(model, word_tokenizer, tmp_path_factory):
    """Of a model with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    model.save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def calls(model, folder, word_tokenizer, tmp_path) -> dict[str, Any]:
    """Every function with these arguments, called with what is right but for those given."""

    def prune(**given: Any) -> Any:
        right = {"target": MACs(0.6), "tokenizer": word_tokenizer, "progress": False}
        return stat_prune.prune(model, TEXTS, **right | given)

    def prune_family(**given: Any) -> Any:
        if "target" in given:
            given["targets"] = [given.pop("target")]
        right = {"targets": [MACs(0.6)], "tokenizer": word_tokenizer, "progress": False}
        return stat_prune.prune_family(model, TEXTS, **right | given)

    def prune_checkpoint(**given: Any) -> Any:
        right = {"target": MACs(0.6), "output_dir": tmp_path / "out", "progress": False}
        return stat_prune.prune_checkpoint(folder, TEXTS, **right | given)

    def estimate(tokenizer: Any = None, **given: Any) -> Any:
        if tokenizer is not None:
            raise SettingsError(f"no {tokenizer!r}: an estimate reads no text")
        return stat_prune.estimate(folder, **{"target": MACs(0.6), "progress": False} | given)

    def finetune(**given: Any) -> Any:
        right = {"target": MACs(0.6), "tokenizer": word_tokenizer, "mode": "masks"}
        return vib_finetune(model, TEXTS, **right | {"progress": False} | given)

    functions = (prune, prune_family, prune_checkpoint, estimate, finetune)
    return {function.__name__: function for function in functions}


def test_a_model_is_taken_by_its_path(model, folder, word_tokenizer, tmp_path):
    how = {"target": MACs(0.6), "progress": False}
    of_model = stat_prune.prune(model, TEXTS, tokenizer=word_tokenizer, **how)
    of_path = stat_prune.prune(folder, TEXTS, output_dir=tmp_path / "out", **how)
    expected, found = of_model.model.state_dict(), of_path.model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert load_tokenizer(str(tmp_path / "out")) is not None
    for one in stat_prune.prune_family(
        str(folder), TEXTS, targets=[MACs(0.8), MACs(0.6)], progress=False
    ):
        assert any(block.kept < block.total for block in one.report.blocks)
    with pytest.raises(LoadError, match="neither a folder nor a model"):
        stat_prune.prune(tmp_path / "nowhere", TEXTS, **how)
    with pytest.raises(SaveError):
        stat_prune.prune(folder, TEXTS, output_dir=folder, overwrite=True, **how)
    assert stat_prune.load(folder).config.hidden_size == model.config.hidden_size


BAD: list[tuple[str, Any, str]] = [
    ("target", 0.5, r"got 0.5. Did you mean MACs\(0.5\)\?"),
    ("target", 60, r"got 60. Did you mean MACs\(0.6\)\?"),
    ("target", 1.5, r"got 1.5. Did you mean Speedup\(1.5\)\?"),
    ("target", "0.5", r"got '0.5'. Did you mean MACs\(0.5\)\?"),
    ("target", {"heads": 0.5}, r"Did you mean MACs\(\{'heads': 0.5\}\)\?"),
    ("target", None, r"got None. Pass, for instance, target=stat_prune.MACs\(0.6\)"),
    ("target", MACs, r"Pass, for instance, target=stat_prune.MACs\(0.6\)"),
    ("target", True, "got True"),
    ("tokenizer", 3, "`tokenizer` must be.*got int. Pass AutoTokenizer"),
    ("device", "foo", "device='foo' cannot be used here.*This machine has 'cpu'.*leave it out"),
    ("device", "cuda:99", "device='cuda:99' cannot be used here"),
    ("device", "meta", "device='meta' cannot be used here"),
    ("device", 1.5, "`device` must be a name such as 'cpu' or 'cuda:0', got 1.5"),
    ("seed", -1, "`seed` must be an integer from 0 to 4294967295, got -1"),
    ("seed", 1.5, "`seed` must be an integer.*got 1.5"),
    ("seed", "0", "got '0'. Did you mean 0?"),
    ("seed", 2**40, "`seed` must be"),
    ("seed", None, "`seed` must be.*got None"),
    (
        "max_seq_length",
        "8",
        r"`max_seq_length` must be a positive integer, got '8'. Did you mean 8",
    ),
    ("max_seq_length", 8.0, r"got 8.0. Did you mean 8\?"),
    ("ignore", 1.5, "`ignore` takes numbers of layers.*got 1.5"),
    ("ignore", [None], "`ignore` takes numbers of layers.*got None"),
    ("progress", "no", "`progress` must be True or False, got 'no'"),
]


@pytest.mark.parametrize("function", ["prune", "prune_family", "prune_checkpoint", "finetune"])
@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=lambda value: repr(value)[:20])
def test_every_function_refuses_the_same_arguments_by_name_with_the_remedy(
    function, name, value, message, calls
):
    with pytest.raises((SettingsError, TargetError), match=message):
        calls[function](**{name: value})


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=lambda value: repr(value)[:20])
def test_an_estimate_refuses_the_same_arguments(name, value, message, calls):
    if name == "tokenizer":
        pytest.skip("an estimate reads no text")
    with pytest.raises((SettingsError, TargetError), match=message):
        calls["estimate"](**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("uniform", "yes", "`uniform` must be True or False, got 'yes'"),
        ("remove_blocks", 2, "`remove_blocks` must be True or False"),
        ("inplace", None, "`inplace` must be True or False"),
        ("objective", 3, "`objective` must be one of logits.*or a callable; got 3"),
        ("objective", "logit", "`objective` must be one of logits"),
        ("passes", True, "`passes` must be 1 or 2, got True"),
        ("passes", 3, "`passes` must be 1 or 2, got 3"),
        ("precision", 32, "`precision` must be one of"),
        ("precision", ["float32"], "`precision` must be one of"),
        ("method", None, "Unknown method None. Known: stat"),
        ("method", ["stat"], "Unknown method"),
        ("method", np.zeros(2), "Unknown method"),
        ("batch_size", "32", r"`batch_size` must be a positive integer, got '32'. Did you mean 32"),
        ("round_to", 0, "`round_to` must be a positive integer, got 0"),
        ("num_calibration_samples", 0.5, "must be a positive integer, got 0.5"),
        ("work_dir", 3, "`work_dir` must be a path, got 3"),
        ("output_dir", "a\0b", "`output_dir` must be a path"),
        ("output_dir", "", "`output_dir` must be a path, got ''"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_prune_refuses_what_no_setting_can_be(name, value, message, calls, model):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SettingsError, match=message):
        calls["prune"](**{name: value})
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


def test_integers_and_flags_of_numpy_and_one_entry_by_itself_are_taken():
    plain = Settings(
        seed=np.int64(3),
        batch_size=np.int32(4),
        num_calibration_samples=np.uint8(5),
        max_seq_length=np.int16(6),
        round_to=np.int64(2),
        passes=np.int64(1),
        uniform=np.bool_(True),
        ignore=np.int64(1),
    )
    assert plain == Settings(
        seed=3,
        batch_size=4,
        num_calibration_samples=5,
        max_seq_length=6,
        round_to=2,
        passes=1,
        uniform=True,
        ignore=[1],
    )
    assert type(plain.seed) is type(plain.ignored[0]) is int
    assert Settings(ignore=None).ignored == []


def test_what_to_ignore_may_come_from_a_generator():
    chosen = Settings(ignore=(layer for layer in (0, 1)))
    assert chosen.ignored == chosen.ignored == [0, 1]


def test_fractions_of_numpy_are_those_of_python():
    assert MACs(np.float64(0.5), seq_length=np.int64(8)) == MACs(0.5, seq_length=8)
    assert repr(Parameters(np.float32(0.5))) == repr(Parameters(0.5))
    assert Speedup(np.float32(2), batch_size=np.int64(4)) == Speedup(2, batch_size=4)


@pytest.mark.parametrize("length", ["9", 0, -1, float("inf"), float("nan"), True])
def test_a_length_that_is_no_number_of_tokens_is_refused(length):
    with pytest.raises(TargetError, match="seq_length is a number of tokens"):
        MACs(0.5, seq_length=length)


def test_a_tokenizer_is_loaded_from_its_folder(model, folder, word_tokenizer):
    for place in (folder, str(folder)):
        result = stat_prune.prune(
            model, TEXTS, target=MACs(0.6), tokenizer=place, method="magnitude", progress=False
        )
        assert result.tokenizer.get_vocab() == word_tokenizer.get_vocab()


def test_a_config_alone_is_no_tokenizer(model, tmp_path):
    # transformers makes one of it, to which every word is unknown
    model.save_pretrained(tmp_path / "bert")
    assert load_tokenizer(str(tmp_path / "bert")) is None


def test_a_damaged_tokenizer_is_not_taken_for_none(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(LoadError, match="The tokenizer in.*cannot be loaded"):
        stat_prune.prune(model, TEXTS, target=MACs(0.6), tokenizer=tmp_path / "bert")


def test_a_tokenizer_is_not_found_where_there_is_none(model, tmp_path):
    with pytest.raises(LoadError, match="No tokenizer can be loaded from.*AutoTokenizer"):
        stat_prune.prune(model, TEXTS, target=MACs(0.6), tokenizer=tmp_path)


def test_a_processor_has_its_tokenizer_inside(model, word_tokenizer):
    processor = types.SimpleNamespace(tokenizer=word_tokenizer)
    with pytest.raises(SettingsError, match=r"Did you mean its \.tokenizer\?"):
        stat_prune.prune(model, TEXTS, target=MACs(0.6), tokenizer=processor)


def test_one_target_by_itself_is_a_family_of_one(calls):
    (result,) = calls["prune_family"](targets=MACs(0.6), method="magnitude")
    assert result.report.after.block_macs < result.report.before.block_macs
    with pytest.raises(TargetError, match="`targets` is empty"):
        calls["prune_family"](targets=[])
    with pytest.raises(TargetError, match=r"Did you mean MACs\(0.8\)\?"):
        calls["prune_family"](targets=[0.8, 0.6])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher": "bert"}, "`teacher` must be a model, got the name 'bert'"),
        ({"gradual": ["0.5"]}, "`gradual` must be a number, got '0.5'"),
        ({"hidden": "0.5"}, "`hidden` must be a number, got '0.5'"),
        ({"labels": "yes"}, "`labels` must be True or False"),
        ({"mode": 3}, "Unknown mode 3. Known: full"),
        ({"mode": ["full"]}, "Unknown mode"),
        ({"resume": 1}, "`resume` must be True or False"),
        ({"output_dir": 3}, "`output_dir` must be a path"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_finetuning_refuses_what_no_setting_can_be(arguments, message, calls):
    with pytest.raises((SettingsError, ModelError), match=message):
        calls["finetune"](**arguments)


@pytest.mark.parametrize(
    "field",
    [
        {"learning_rate": "fast"},
        {"dropout": "no"},
        {"layer_map": [1]},
        {"layer_map": 3},
        {"folding": []},
        {"temperature": None},
        {"mask_epochs": float("nan")},
        {"batch_size": "8"},
    ],
    ids=str,
)
def test_a_field_of_a_config_that_has_no_such_value_is_named(field):
    (name,) = field
    with pytest.raises(SettingsError, match=f"`{name}` must be"):
        VIBConfig(**field)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "`seed` must be"),
        ({"num_samples": "8"}, "Did you mean 8?"),
        ({"max_seq_length": "8"}, "`max_seq_length` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"threshold": "0.1"}, "`threshold` must be a number"),
        ({"progress": "no"}, "`progress` must be True or False"),
        ({"tokenizer": 3}, "`tokenizer` must be"),
        ({"model": "bert"}, "`model` must be a model, got the name 'bert'"),
    ],
    ids=str,
)
def test_statistics_of_heads_refuse_the_same(arguments, message, model, word_tokenizer):
    right = {"model": model, "tokenizer": word_tokenizer, "progress": False}
    with pytest.raises((SettingsError, ModelError), match=message):
        head_statistics(dataset=TEXTS, **right | arguments)


def test_statistics_of_heads_load_a_tokenizer_from_its_folder(model, folder):
    found = head_statistics(model, TEXTS, tokenizer=str(folder), progress=False)
    assert "to_special" in found.names


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 3, 10**30, -(10**30)])
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["heads", "neurons", "stat", "cpu", "0", "pooled", "float32", "auto", "\0"])
    | st.sampled_from(
        [b"stat", object(), dict, print, np.float32(0.5), np.int64(1), np.ones(2), torch.ones(2)]
    )
    | st.sampled_from([MACs(0.7), Parameters(0.5), Tolerance(0.3), MACs({"heads": 0.5})])
    | st.lists(st.integers(-3, 3) | st.sampled_from(["heads", "x", None]), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)
)

ARGUMENTS = (
    *("target", "method", "num_calibration_samples", "max_seq_length", "batch_size", "seed"),
    *("device", "ignore", "round_to", "uniform", "remove_blocks", "objective", "passes"),
    *("precision", "tokenizer", "inplace", "progress", "model", "dataset"),
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(given=st.dictionaries(st.sampled_from(ARGUMENTS), ANYTHING, min_size=1, max_size=2))
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_passed_prune_refuses_it_or_gives_a_smaller_model(given, word_tokenizer):
    right = {"model": tiny_bert(), "dataset": TEXTS, "tokenizer": word_tokenizer}
    # the quickest method, so that many arguments are tried
    right |= {"target": MACs(0.6), "method": "magnitude", "progress": False}
    try:
        result = stat_prune.prune(**right | given)
    except (StatPruneError, TypeError) as error:
        assert str(error)
    else:
        with torch.no_grad():
            output = result.model(torch.tensor([[2, 5, 6, 3]])).last_hidden_state
        assert torch.isfinite(output).all()
        report = result.report
        assert report.after.block_parameters <= report.before.block_parameters
        assert all(0 < row.kept <= row.total or row.kept == 0 for row in report.blocks)
