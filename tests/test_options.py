"""What may be asked for: once in a dataclass, directly, on the command line and in a file."""

from __future__ import annotations

import json
import re
from dataclasses import Field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_bert
from typer.testing import CliRunner

import stat_prune
from stat_prune import Calibration, Constraints, MACs, Method
from stat_prune.cli import app
from stat_prune.cli.settings_options import documentation, settings_in
from stat_prune.errors import SettingsError
from stat_prune.settings.fields import Config, Integer, Number, OneOf
from stat_prune.settings.methods import FINISHES, METHODS
from stat_prune.settings.options import Arguments, Options
from stat_prune.settings.settings import Settings, recorded_arguments, settings_of
from stat_prune.settings.targets import TARGETS
from stat_prune.vib import VIBConfig

TEXTS = ["the cat sat on the mat", "a dog ran under the house", "the bird flew over a tree"] * 12

GROUPS = {"calibration": Calibration, "constraints": Constraints, "method": Method}

#: By keyword: the group that has it, and the field.
FIELDS: dict[str, tuple[str, Field[Any]]] = {
    one.metadata.get("keyword", one.name): (group, one)
    for group, kind in GROUPS.items()
    for one in fields(kind)
    if group != "method" or "keyword" in one.metadata
}


def other_than_default(one: Field[Any]) -> Any:
    """A value that the field takes."""
    check = one.metadata["check"]
    if isinstance(check, Integer):
        return check.most if check.most == 2 else (one.default or 0) + 3
    if isinstance(check, Number):
        return one.default / 2
    if isinstance(check, OneOf):
        return check.names[-1] if check.names[-1] != one.default else check.names[0]
    return not one.default


def values_of(one: Field[Any]) -> st.SearchStrategy[Any]:
    """All that JSON has of what the field takes."""
    check = one.metadata.get("check")
    if isinstance(check, Integer):
        found: st.SearchStrategy[Any] = st.integers(check.least, check.most or 10**6)
    elif isinstance(check, Number):
        found = st.floats(0 if check.zero else 1e-9, check.most or 1e9)
    elif isinstance(check, OneOf):
        found = st.sampled_from(check.names)
    elif one.name == "layer_map":
        found = st.none() | st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3)
    elif one.name == "criterion":
        found = st.sampled_from([method.criterion for method in METHODS.values()])
    else:
        found = st.booleans()
    return found | st.none() if getattr(check, "optional", False) else found


def configs(kind: type[Config]) -> st.SearchStrategy[dict[str, Any]]:
    """Fields of one, a part or all of them."""
    optional = {one.name: values_of(one) for one in fields(kind)}
    return st.fixed_dictionaries({}, optional=optional)


def test_the_names_that_are_taken_directly_are_the_fields():
    assert Options.__annotations__.keys() == FIELDS.keys()
    assert Options.__annotations__.keys() <= Arguments.__annotations__.keys()
    kept = {one.name for one in fields(Settings)} | GROUPS.keys()
    assert Arguments.__annotations__.keys() == kept


@pytest.mark.parametrize("name", FIELDS)
def test_a_name_has_the_type_of_its_field(name):
    group, one = FIELDS[name]
    written = Options.__annotations__[name].__forward_arg__
    assert written.removesuffix(" | None") == str(one.type).removesuffix(" | None")
    # nothing is the method's own way, even where the method has to say
    assert (written == one.type) or group == "method"


@pytest.mark.parametrize("kind", [*GROUPS.values(), VIBConfig])
def test_every_field_is_documented_once(kind):
    names = [one.name for one in fields(kind)]
    if kind is VIBConfig:  # several to an entry
        assert all(name in (kind.__doc__ or "") for name in names)
        return
    assert list(documentation(kind)) == names
    assert all(text.endswith(".") for text in documentation(kind).values())


@pytest.mark.parametrize("name", FIELDS)
def test_a_keyword_reaches_its_field_by_itself_and_in_its_group(name):
    group, one = FIELDS[name]
    value = other_than_default(one)
    grouped = {group: GROUPS[group](**{one.name: value})}
    direct, together = (settings_of(stat_prune.prune, g) for g in ({name: value}, grouped))

    assert getattr(direct, name) == value
    assert direct != settings_of(stat_prune.prune, {})
    if group == "method":
        assert getattr(direct.recipe, one.name) == getattr(together.recipe, one.name) == value
    else:
        assert direct == together


@pytest.mark.parametrize("name", FIELDS)
def test_what_is_given_by_itself_goes_before_its_group(name):
    group, one = FIELDS[name]
    value = other_than_default(one)
    own = Method() if group == "method" else GROUPS[group]()
    chosen = settings_of(stat_prune.prune, {group: own, name: value})
    assert getattr(chosen, name) == value


@pytest.mark.parametrize("name", FIELDS)
def test_a_keyword_that_has_no_such_value_is_named_wherever_it_is_given(name):
    group, one = FIELDS[name]
    for call, own in (
        (partial(Settings, **{name: object()}), name),
        (partial(GROUPS[group], **{one.name: object()}), one.name),
    ):
        with pytest.raises(SettingsError, match=f"`{own}` must be"):
            call()


@pytest.mark.parametrize("name", Arguments.__annotations__)
def test_help_names_every_argument(name):
    assert name in (stat_prune.prune.__doc__ or "")


def calls(tokenizer: Any) -> dict[str, Any]:
    model, target = tiny_bert(), {"target": MACs(0.6)}
    return {
        "prune": partial(stat_prune.prune, model, TEXTS, tokenizer=tokenizer, **target),
        "prune_family": partial(stat_prune.prune_family, model, TEXTS, targets=[MACs(0.6)]),
        "prune_checkpoint": partial(
            stat_prune.prune_checkpoint, "m", TEXTS, output_dir="o", **target
        ),
        "estimate": partial(stat_prune.estimate, model.config, **target),
    }


@pytest.mark.parametrize("function", ["prune", "prune_family", "prune_checkpoint", "estimate"])
def test_an_unknown_keyword_names_the_nearest(function, word_tokenizer):
    call = calls(word_tokenizer)[function]
    message = rf"{function}\(\) got an unexpected keyword argument 'bach_size'. Did you mean 'batc"
    with pytest.raises(TypeError, match=message):
        call(bach_size=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'zzz'.$"):
        call(zzz=3)
    with pytest.raises(SettingsError, match=r"`calibration` must be a stat_prune.Calibration\("):
        call(calibration={"seed": 1})


def test_a_name_of_the_function_itself_is_near_too():
    with pytest.raises(TypeError, match="Did you mean 'output_dir'?"):
        settings_of(stat_prune.prune, {"outputdir": "out"})


def test_both_ways_of_saying_it_give_the_same_model(word_tokenizer):
    prune = partial(
        stat_prune.prune, tiny_bert(), TEXTS, target=MACs(0.6), tokenizer=word_tokenizer
    )
    direct = prune(
        num_calibration_samples=20,
        batch_size=5,
        seed=3,
        round_to=4,
        objective="pooled",
        budget="probed",
        precision="float64",
        progress=False,
    )
    together = prune(
        calibration=Calibration(num_calibration_samples=20, batch_size=5, seed=3),
        constraints=Constraints(round_to=4),
        method=Method(allocation="probed", objective="pooled", precision="float64"),
        progress=False,
    )
    weights, others = direct.model.state_dict(), together.model.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    used, same = direct.report.settings_used(), together.report.settings_used()
    assert used | {"method": ""} == same | {"method": ""}


def test_effort_is_what_somebody_says_or_what_is_usual():
    checkpoint = partial(settings_of, stat_prune.prune_checkpoint, effort="fast")
    assert checkpoint({}).effort == checkpoint({"method": Method()}).effort == "fast"
    assert checkpoint({"method": Method(effort="thorough")}).effort == "thorough"
    assert checkpoint({"effort": "normal", "method": Method(effort="fast")}).effort == "normal"
    assert settings_of(stat_prune.prune, {"method": Method()}).effort == "normal"
    assert settings_of(stat_prune.prune, {"method": "stat-two-pass"}).num_passes == 2


def test_a_method_says_of_itself_what_was_asked_for():
    usual = "Method(criterion='interpolative', corrected=True, absorb_mean=True, "
    usual += "allocation='searched', passes=1"
    assert repr(Method()) == f"{usual})"
    assert repr(Method(effort="fast")) == f"{usual}, effort='fast')"


@pytest.mark.parametrize("kind", [*GROUPS.values(), VIBConfig], ids=lambda k: k.__name__)
@given(data=st.data())
def test_a_group_goes_through_json_and_back(kind, data):
    given = data.draw(configs(kind))
    try:
        one = kind(**given)
    except SettingsError as error:  # each has its values, but they do not go together
        together = ("passes=2", "All weights of the loss are 0", "folding='corrected'")
        assert str(error).startswith(together)
        return
    assert kind.from_json(one.to_json()) == one
    assert kind.from_dict(one.to_dict()) == one
    assert kind.from_dict(given) == one


@given(
    calibration=configs(Calibration),
    constraints=configs(Constraints),
    method=st.sampled_from([*METHODS, Method(), Method(effort="fast", passes=2), "kcm"]),
    ignore=st.lists(st.integers(0, 3) | st.sampled_from(["heads", "a.*"])),
    effort=st.sampled_from([None, "fast", "thorough"]),
    finish=st.sampled_from([None, *FINISHES]),
)
def test_settings_go_through_json_and_back(calibration, constraints, **own):
    try:
        settings = Settings(**calibration, **constraints, **own, device="cpu")
    except SettingsError as error:
        assert "uniform" in str(error)  # which does not go with everything
        return
    stored = json.loads(json.dumps(settings.to_dict()))
    assert Settings.from_dict(stored) == settings
    assert Settings.from_dict(stored).to_dict() == settings.to_dict()


def test_settings_have_in_a_report_what_they_had():
    assert set(Settings().to_dict()) == {
        *("method", "num_calibration_samples", "max_seq_length", "batch_size", "seed", "ignore"),
        *("mask_fraction", "device", "round_to", "uniform", "remove_blocks", "head_dims", "effort"),
        *("budget", "passes", "precision", "finish", "serve_with", "objective"),
    }


@pytest.mark.parametrize("kind", [Calibration, Constraints, Method, VIBConfig])
def test_a_field_that_is_unknown_is_one_error_with_the_nearest(kind):
    known = fields(kind)[-1].name
    with pytest.raises(SettingsError, match=f"{kind.__name__} has no field {known}x.*'{known}'"):
        kind.from_dict({f"{known}x": 1})
    with pytest.raises(SettingsError, match=f"A {kind.__name__} is an object in JSON, got"):
        kind.from_json("[1]")
    with pytest.raises(SettingsError, match=f"A {kind.__name__} is an object in JSON, got"):
        kind.from_json("{")


@pytest.mark.parametrize(
    "target",
    [
        MACs(0.6),
        MACs({"heads": 0.5}, seq_length=3),
        stat_prune.Parameters(0.5, embeddings=True),
        stat_prune.Bytes(0.5),
        stat_prune.Speedup(2, batch_size=4),
        stat_prune.Tolerance(0.1),
    ],
    ids=repr,
)
def test_a_report_says_its_target_so_that_it_can_be_asked_for_again(target):
    assert type(target) in TARGETS
    assert recorded_arguments({"target": repr(target)}) == {"target": target}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"target": "MACs(0.5).x"}, "is none of MACs, Parameters.*with plain values"),
        ({"target": "print(1)"}, "is none of MACs"),
        ({"target": None}, "is none of MACs"),
        ({"target": "MACs(60)"}, r"Did you mean MACs\(0.6\)"),
        ({"method": "Method(criterion=variance)"}, "What has a function of Python in it"),
        ({"sed": 1}, "There is no setting sed. Did you mean 'seed'?"),
        ({"inplace": True}, "There is no setting inplace"),
    ],
)
def test_what_a_report_cannot_have_is_refused(stored, message):
    with pytest.raises(stat_prune.StatPruneError, match=message):
        Settings.from_dict(stored)


def command_line(command: str) -> dict[str, Any]:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {one.name: one for one in commands[command].params}


def test_which_heads_can_be_narrower_is_said_in_one_place():
    help_text = command_line("prune")["head_dims"].help
    assert "docs/architectures.md" in help_text
    assert not {"BERT", "Llama"} & set(re.findall(r"\w+", help_text))
    page = Path(__file__).parents[1] / "docs" / "architectures.md"
    assert "## Dimensions inside heads" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FIELDS)
def test_an_option_of_prune_says_what_its_field_says(name):
    group, one = FIELDS[name]
    option, check = command_line("prune")[name], one.metadata["check"]

    assert option.opts == [f"--{name.replace('_', '-')}"]
    assert option.help == documentation(GROUPS[group])[one.name]
    assert option.default == (None if group == "method" else one.default)
    wrong = []
    if isinstance(check, Integer):
        wrong = [check.least - 1, *([] if check.most is None else [check.most + 1])]
    if isinstance(check, Number):
        wrong = [-0.1, 1.1]
    if isinstance(check, OneOf):
        assert all(named in option.help for named in check.names)
        wrong = ["nothing"]
    for value in wrong:
        usage = ["prune", "m", "-d", "t", "-o", "o", "--macs", "1", option.opts[0], str(value)]
        done = CliRunner().invoke(app, usage)
        assert done.exit_code == 2
        assert f"Invalid value for '{option.opts[0]}'" in done.output


def test_plan_has_the_options_that_what_it_foresees_depends_on():
    plan, prune = command_line("plan"), command_line("prune")
    for name in ("num_calibration_samples", "batch_size", "effort", "budget", "method", "ignore"):
        assert plan[name].help == prune[name].help


def test_a_file_of_settings_is_read_as_it_is_written(tmp_path):
    settings = Settings(**replace_all())
    written = {key: value for key, value in settings.to_dict().items() if value is not None}
    (tmp_path / "a.json").write_text(json.dumps(settings.to_dict()))
    (tmp_path / "report.json").write_text(json.dumps({"settings": settings.to_dict()}))
    toml = "\n".join(f"{name} = {json.dumps(value)}" for name, value in written.items())
    (tmp_path / "a.toml").write_text(toml)
    for name in ("a.json", "report.json", "a.toml"):
        found = settings_in(tmp_path / name)
        assert settings_of(stat_prune.prune, found) == settings, name


def replace_all() -> dict[str, Any]:
    """Another value of every field, where they go together."""
    found = {name: other_than_default(one) for name, (_, one) in FIELDS.items()}
    return found | {"head_dims": False, "ignore": [0, "heads"], "device": "cpu"}


@pytest.mark.parametrize("content", ["[1]", "{", "3", '"seed"'])
def test_a_file_of_anything_else_is_refused(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SettingsError, match=r"a\.json holds no settings"):
        settings_in(tmp_path / "a.json")


def test_settings_can_be_replaced_and_are_checked_again():
    settings = Settings(batch_size=4)
    assert replace(settings, objective="pooled").batch_size == 4
    with pytest.raises(SettingsError, match="`seed` must be"):
        replace(settings, seed=-1)


def test_the_guides_objects_are_what_prune_takes():
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    settings = settings_of(stat_prune.prune, {group: names[group] for group in GROUPS})
    assert (settings.seed, settings.round_to, settings.effort) == (1, 64, "thorough")
    result = names["smaller"]
    assert {"calibration", "constraints", "method"} <= set(result.__code__.co_names)
