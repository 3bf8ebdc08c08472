"""What a target accepts, and which blocks it speaks of."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_bert
from toys import head_block, neuron_block

import stat_prune
from stat_prune import Bytes, Latency, MACs, Parameters, Speedup, Target, Tolerance
from stat_prune.errors import SettingsError, TargetError
from stat_prune.model.ignoring import without_ignored
from stat_prune.settings.settings import Settings, kinds_left_alone, recorded_arguments
from stat_prune.settings.targets import TARGETS


@pytest.mark.parametrize("kind", [MACs, Parameters, Latency, Tolerance])
@pytest.mark.parametrize("value", [0, -0.1, 1.01, float("nan"), "0.5", None, True])
def test_a_fraction_outside_its_range_is_refused_with_the_value(kind, value):
    with pytest.raises(TargetError, match=r"\(0, 1\]"):
        kind(value)


def test_a_percentage_is_answered_with_the_fraction_meant():
    with pytest.raises(TargetError, match=r"Did you mean MACs\(0\.6\)"):
        MACs(60)


@pytest.mark.parametrize("value", [{}, {"head": 0.5}, {"heads": 0.5, "layers": 0.2}])
def test_a_mapping_of_unknown_kinds_is_refused(value):
    with pytest.raises(TargetError, match="'heads', 'neurons'"):
        MACs(value)


def test_a_sequence_length_must_be_positive():
    with pytest.raises(TargetError, match="seq_length"):
        MACs(0.5, seq_length=0)


def test_a_speed_up_is_a_fraction_of_the_time():
    assert Speedup(2.0) == Latency(0.5)
    assert Speedup(4, batch_size=16, seq_length=128) == Latency(0.25, 16, 128)


@pytest.mark.parametrize("value", [0, -2, 0.99, float("nan"), float("inf"), "2", None, True])
def test_a_speed_up_below_one_is_refused_with_the_value(value):
    with pytest.raises(TargetError, match="from 1 on") as caught:
        Speedup(value)
    assert repr(value) in str(caught.value)


def test_a_speed_up_and_a_fraction_that_were_mistaken_for_each_other_are_answered_with_the_other():
    with pytest.raises(TargetError, match=r"Did you mean Latency\(0\.5\)"):
        Speedup(0.5)
    with pytest.raises(TargetError, match=r"Did you mean Speedup\(2\)"):
        Latency(2)


@pytest.mark.parametrize("name", ["batch_size", "seq_length"])
@pytest.mark.parametrize("value", [0, -1, 31.5, "32", True])
def test_what_time_is_measured_on_is_counted_in_whole_numbers(name, value):
    with pytest.raises(TargetError, match=f"{name} must be a positive integer, got {value!r}"):
        Speedup(2, **{name: value})


def test_time_is_not_asked_for_by_kind():
    with pytest.raises(TargetError, match="one number for the whole model"):
        Latency({"heads": 0.5})


def test_a_mapping_leaves_out_the_kinds_that_it_does_not_name():
    heads, neurons = head_block(4, 4, 2, 5), neuron_block(8, 5, bias=False)
    assert Parameters({"heads": 0.5}).budgets([heads, neurons]) == [([heads], 0.5)]
    assert Parameters(0.5).budgets([heads, neurons]) == [([heads, neurons], 0.5)]


def three_layers():
    return [
        dataclasses.replace(block, name=f"layer.{index}.{block.kind}", layer=index)
        for index in range(3)
        for block in (head_block(4, 4, 2, 5), neuron_block(8, 5, bias=False))
    ]


@pytest.mark.parametrize(
    ("ignore", "names"),
    [
        ((), []),
        (0, ["layer.0.heads", "layer.0.neurons"]),
        ([-1], ["layer.2.heads", "layer.2.neurons"]),
        ("heads", ["layer.0.heads", "layer.1.heads", "layer.2.heads"]),
        (["layer.1.*"], ["layer.1.heads", "layer.1.neurons"]),
    ],
)
def test_ignored_blocks_are_named_by_layer_kind_or_pattern(ignore, names):
    pruned, ignored = without_ignored(three_layers(), ignore)
    assert [block.name for block in ignored] == names
    assert len(pruned) + len(ignored) == 6


@pytest.mark.parametrize("ignore", [[7], ["encoder.*"], ["attention"]])
def test_an_entry_that_matches_nothing_is_refused(ignore):
    with pytest.raises(TargetError, match="matches no block"):
        without_ignored(three_layers(), ignore)


def test_ignoring_everything_is_refused():
    with pytest.raises(TargetError, match="nothing to prune"):
        without_ignored(three_layers(), ["layer.*"])


def test_kinds_that_no_target_speaks_of_are_left_alone():
    settings = Settings()
    heads, neurons = MACs({"heads": 0.5}), Parameters({"neurons": 0.5})
    assert kinds_left_alone(settings, [heads]) == ["neurons"]
    assert kinds_left_alone(settings, [neurons]) == ["heads"]
    assert kinds_left_alone(settings, [heads, neurons]) == []
    assert kinds_left_alone(settings, [heads, MACs(0.6)]) == []


def test_a_kind_left_alone_is_not_measured_and_takes_nothing_from_the_budget(word_tokenizer):
    report = stat_prune.prune(
        tiny_bert(),
        ["the cat sat on the mat and the dog ran", "a bird flew over the house"] * 8,
        tokenizer=word_tokenizer,
        target=MACs({"heads": 0.5}),
        passes=1,
        progress=False,
    ).report
    for row in report.blocks:
        measured = row.error_curve is not None and row.sensitivity is not None
        assert measured == (row.kind == "heads")
        assert row.kind == "heads" or row.kept == row.total
    heads = [row for row in report.blocks if row.kind == "heads"]
    assert sum(row.kept for row in heads) == sum(row.total for row in heads) // 2


FRACTIONS = st.floats(0, 1, exclude_min=True) | st.floats(2**-9, 1, width=32).map(np.float32)
OF_BLOCKS = ["heads", "neurons", "query-key", "value"]
LENGTHS = st.none() | st.integers(1, 4096)
OTHERS = {
    MACs: {
        "seq_length": LENGTHS | st.floats(0.5, 1e4),
        "embeddings": st.none() | FRACTIONS,
        "lm_head": st.none() | FRACTIONS | st.just(True),
    },
    Parameters: {
        "embeddings": st.none() | FRACTIONS | st.just(True),
        "lm_head": st.none() | FRACTIONS,
    },
    Latency: {"batch_size": st.integers(1, 64), "seq_length": LENGTHS},
}


@st.composite
def targets(draw) -> Target:
    kind = draw(st.sampled_from(TARGETS))
    others = {name: draw(values) for name, values in OTHERS.get(kind, {}).items()}
    joint = kind is Bytes or True in [one for one in others.values() if one is True]
    if joint and kind is not Bytes:
        others["embeddings" if kind is MACs else "lm_head"] = None
    if joint or kind is Latency:
        return kind(draw(FRACTIONS), **others)
    names = OF_BLOCKS[:2] if kind is Tolerance else OF_BLOCKS
    by_kind = st.dictionaries(st.sampled_from(names), FRACTIONS, min_size=1)
    return kind(draw(FRACTIONS | by_kind), **others)


@given(targets())
def test_a_target_goes_through_json_and_back(target):
    stored = json.loads(json.dumps(target.to_dict()))
    for found in (
        Target.from_dict(stored),
        type(target).from_dict(stored),
        Target.from_json(target.to_json()),
        recorded_arguments({"target": stored})["target"],
    ):
        assert type(found) is type(target) and found == target
        assert found.to_dict() == target.to_dict()


def test_a_target_as_plain_values_has_what_was_said():
    assert MACs(0.6).to_dict() == {"type": "MACs", "fraction": 0.6}
    asked = {"heads": 0.5, "neurons": np.float32(0.25)}
    assert Parameters(asked, embeddings=0.5).to_dict() == {
        "type": "Parameters", "fraction": {"heads": 0.5, "neurons": 0.25}, "embeddings": 0.5,
    }  # fmt: skip
    assert MACs.from_dict({"fraction": 0.6}) == MACs(0.6)


@pytest.mark.parametrize(
    ("kind", "values", "error", "message"),
    [
        (Target, {"fraction": 0.5}, TargetError, "one of MACs, .*Tolerance; got 'Target'"),
        (Target, {"type": "FLOPs", "fraction": 0.5}, TargetError, "got 'FLOPs'"),
        (Target, {"type": ["MACs"], "fraction": 0.5}, TargetError, "one of MACs"),
        (MACs, {"type": "Bytes", "fraction": 0.5}, TargetError, "one of MACs; got 'Bytes'"),
        (MACs, {"fraction": 60}, TargetError, r"Did you mean MACs\(0\.6\)"),
        (MACs, {"fractions": 0.5}, SettingsError, "Did you mean 'fraction'"),
        (MACs, {"seq_length": 5}, SettingsError, "MACs lacks the field fraction"),
    ],
)
def test_values_that_are_of_no_target_are_refused(kind, values, error, message):
    with pytest.raises(error, match=message):
        kind.from_dict(values)
    with pytest.raises(SettingsError, match="is an object in JSON, got"):
        kind.from_json("[0.5]")
