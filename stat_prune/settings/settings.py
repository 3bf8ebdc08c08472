"""The arguments of a pruning run, checked in one place."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, cast

import torch

from stat_prune.errors import SettingsError
from stat_prune.model.blocks import KINDS, Kind
from stat_prune.model.running import Objective
from stat_prune.settings.arguments import entries, flag, usable_device
from stat_prune.settings.fields import OneOf, check_known, checked, nearest
from stat_prune.settings.methods import (
    BASELINES,
    FINISHES,
    Allocation,
    Baseline,
    Effort,
    Finish,
    Method,
    ObjectiveName,
    Precision,
    baseline_named,
    method_named,
)
from stat_prune.settings.options import Arguments, Calibration, Constraints
from stat_prune.settings.targets import TARGETS, Target, checked_target

#: One more example for so many of the calibration set is held out.
HELD_OUT_PART = 8

#: Fewer sequences tell nothing of two results that are nearly as good.
MIN_HELD_OUT = 8

#: Fields of `Method` that are asked for directly, too, by what they are called then.
_OF_METHOD = {one.metadata["keyword"]: one for one in fields(Method) if "keyword" in one.metadata}

#: Arguments that are several at once.
_GROUPS = ("calibration", "constraints")

#: What a model of sentence-transformers is pruned for where nobody says; it is made of the model.
OF_WHOLE_ENCODERS = "SentenceEmbeddings.distance"

#: How the run itself goes, which no report has.
_UNRECORDED = ("inplace", "progress")

#: What a report has beside the settings.
_OF_THE_RUN = frozenset(
    {
        "model",
        "calibration_samples",
        "calibration_tokens",
        "calibration_masked_tokens",
        "calibration_fingerprint",
        "dtype",
        "processes",
        "chosen",
    }
)


@dataclass(frozen=True, kw_only=True)
class Settings(Constraints, Calibration):
    """How to prune: all that was asked for, and what it comes to.

    `Calibration`, `Constraints` and `Method` document what they have, `stat_prune.prune` the rest.
    `effort`, `objective` and `precision` are the method's where they are not given; `budget` and
    `passes` are those that are given.
    """

    method: str | Method | Baseline = "stat"
    objective: ObjectiveName | Objective | None = None
    effort: Effort = cast(Effort, None)
    budget: Allocation | None = None
    passes: int | None = None
    precision: Precision = cast(Precision, None)
    finish: Finish | None = checked(None, OneOf(FINISHES, True))
    ignore: Iterable[int | str] = checked((), entries)
    device: str | torch.device | None = checked(None, lambda _, value: usable_device(value))
    inplace: bool = checked(False, flag)
    progress: bool = checked(True, flag)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, of_method in _OF_METHOD.items():
            if getattr(self, name) is not None:
                self._take(name, of_method.metadata["check"](name, getattr(self, name)))
        parts = self._named
        for name in ("objective", "effort", "precision"):
            if getattr(self, name) is None:
                self._take(name, getattr(parts, name))
        if self.effort is None:
            self._take("effort", "normal")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.passes == 2 and not (self.baseline or self._named).corrected:
            raise SettingsError(
                f"passes=2 solves the correction of method='stat' and its variants again; "
                f"method={self.method!r} has none. Leave passes out."
            )
        planner = self.planner
        if self.uniform and not planner.uniform:
            raise SettingsError(f"method={self.method!r} has no uniform mode; use method='stat'.")
        if self.budget is not None and self.budget not in planner.allocations:
            able = ", ".join(f"{one.name!r}" for one in BASELINES.values() if one.takes_sizes)
            raise SettingsError(
                f"method={self.method!r} spreads its budget itself, got budget={self.budget!r}. "
                "Leave budget out, or use method='stat', 'obs' or another that ranks units; "
                f"budget='searched' also goes with {able}."
            )
        own = not (planner.head_dims and self._searches)
        if self.head_dims and (self.uniform or self.serve_with or own):
            raise SettingsError(
                "head_dims=True measures whole pruned models and gives each layer sizes of its "
                f"own, got method={self.method!r}, budget={self.budget!r}, uniform={self.uniform}, "
                f"serve_with={self.serve_with!r}. Use method='stat' with its own budget, and leave "
                "the other two out."
            )

    @property
    def baseline(self) -> Baseline | None:
        """A method that is a pipeline of its own; None for one that is made of parts."""
        return baseline_named(self.method)

    @property
    def planner(self) -> Method | Baseline:
        """What chooses the units, and says what goes with that."""
        return self.baseline or self.recipe

    @property
    def own_budget(self) -> bool:
        """Whether a `baseline` spreads its budget in its own way."""
        return self.baseline is not None and self.budget is None

    @property
    def _named(self) -> Method:
        if self.baseline is not None:
            return Method()
        return method_named(cast("str | Method", self.method))

    @property
    def recipe(self) -> Method:
        """The method's parts, with all that is asked for besides.

        Of a `baseline` those of the method that finds its sizes, where they are searched for.

        Raises
        ------
        SettingsError
            If there is no such method, or it cannot be combined with the budget.
        """
        recipe = self._named
        if self.budget is not None and recipe.heads_only and self.budget != "even":
            raise SettingsError(
                f"method={self.method!r} prices no sizes, got budget={self.budget!r}. Leave it out."
            )
        asked = {one.name: getattr(self, name) for name, one in _OF_METHOD.items()}
        return replace(recipe, **{k: value for k, value in asked.items() if value is not None})

    @property
    def num_passes(self) -> int:
        """Of the correction, as asked for or as the method says; not of a `baseline`."""
        return self.recipe.passes

    @property
    def tries_second_pass(self) -> bool:
        """Whether a second pass is asked for, or part of a search that is not to be fast."""
        if not self.planner.corrected:
            return False
        searched = self.passes is None and self._searches and self.effort != "fast"
        return self.num_passes == 2 or searched

    @property
    def num_held_out(self) -> int:
        """Examples to draw besides those of the calibration set, to choose with at the end."""
        if not self._searches or self.effort == "fast":
            return 0
        return max(self.num_calibration_samples // HELD_OUT_PART, MIN_HELD_OUT)

    @property
    def _searches(self) -> bool:
        return not self.own_budget and self.recipe.allocation == "searched"

    @property
    def reads_output(self) -> bool:
        """Whether the model's output has a say in what is pruned, and not activations alone."""
        return self.finish is not None or self.planner.reads_output or self._searches

    @property
    def ignored(self) -> list[int | str]:
        """`ignore` as a list."""
        return list(self.ignore)

    @property
    def first_precision(self) -> str:
        """Of the products in the first pass; with "auto" some blocks need another in float64."""
        return "float32" if self.precision == "auto" else self.precision

    @property
    def removes_blocks(self) -> bool:
        """Whether blocks may leave altogether: not where all layers are to be alike."""
        return self.remove_blocks and not self.uniform and self.planner.removes_blocks

    @property
    def ranks_heads_only(self) -> bool:
        """Whether the method's criterion has nothing to say of neurons."""
        return self.planner.heads_only

    @property
    def leaves_heads(self) -> bool:
        """Whether neurons alone bear a budget of both kinds."""
        return self.planner.leaves_heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the report: all but how the run itself goes."""
        own = {
            "method": self.method if isinstance(self.method, str) else repr(self.method),
            "device": None if self.device is None else str(self.device),
        }
        found = {"method": None, **super().to_dict(), **own}
        return {name: value for name, value in found.items() if name not in _UNRECORDED}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings that `to_dict` came from, or a report's; see `recorded_arguments`."""
        arguments = recorded_arguments(values)
        arguments.pop("target", None)
        return cls(**arguments)


def kinds_left_alone(settings: Settings, targets: Sequence[Target]) -> list[Kind]:
    """Kinds of blocks that no target speaks of, or not the method: they are not measured.

    Raises
    ------
    SettingsError
        If the method ranks heads only, and a target speaks of neurons too.
    TargetError
        If a target is none.
    """
    for target in map(checked_target, targets):
        kinds = target.fractions().keys()
        if target.factors and not settings.planner.factors:
            raise SettingsError(
                f"method={settings.method!r} prunes attention heads and neurons, but {target!r} is "
                "of embeddings, or of a language model's head. Use method='stat', or leave them "
                "out."
            )
        if target.is_joint and settings.recipe.allocation != "searched":
            raise SettingsError(
                f"{target!r} shares one budget by what whole models do, which "
                f"method={settings.method!r} or its budget does not measure. Use method='stat', or "
                "a fraction for embeddings by themselves: embeddings=0.5."
            )
        if target.of_dimensions:
            _check_dimensions(settings, target)
        if not kinds:
            continue
        if settings.ranks_heads_only and kinds != {"heads"} and "neurons" not in settings.ignored:
            value = next(iter(target.fractions().values()))
            raise SettingsError(
                f"method={settings.method!r} ranks heads only, but {target!r} is of neurons too. "
                f"Pass target=MACs({{'heads': {value:g}}}), or ignore='neurons'."
            )
    named = {kind for target in targets for kind in target.fractions()}
    if "all" in named:
        return ["heads"] if settings.leaves_heads else []
    return [kind for kind in KINDS if kind not in named]


def _check_dimensions(settings: Settings, target: Target) -> None:
    """Refuse fractions of dimensions inside heads beside what gives them no place.

    Raises
    ------
    SettingsError
    """
    if not settings.planner.head_dims or settings.uniform or settings.serve_with:
        raise SettingsError(
            f"{target!r} gives the heads of each layer sizes of their own, which "
            f"method={settings.method!r} with uniform={settings.uniform} and "
            f"serve_with={settings.serve_with!r} has no place for. Leave uniform and serve_with "
            f"out, and use method='stat'; or ask for heads and neurons alone."
        )


def settings_of(
    function: Callable[..., Any], given: Mapping[str, Any], *, effort: Effort = "normal"
) -> Settings:
    """Settings from the keyword arguments of a public function.

    Parameters
    ----------
    function : callable
        Which was called, for the error's sake.
    given : mapping
        As `Arguments`. What is given by itself goes before what `calibration`, `constraints` and
        `method` say.
    effort : {"fast", "normal", "thorough"}
        Where nobody says.

    Raises
    ------
    TypeError
        If an argument is unknown; names the nearest.
    SettingsError
    """
    known = [*inspect.signature(function).parameters, *Arguments.__annotations__]
    for name in given.keys() - Arguments.__annotations__.keys():
        raise TypeError(
            f"{function.__name__}() got an unexpected keyword argument {name!r}."
            f"{nearest(name, known)}"
        )
    values: dict[str, Any] = {}
    for name, kind in (("calibration", Calibration), ("constraints", Constraints)):
        group = given.get(name)
        if not (group is None or isinstance(group, kind)):
            raise SettingsError(
                f"`{name}` must be a stat_prune.{kind.__name__}(...), got {group!r}."
            )
        values |= {} if group is None else {f.name: getattr(group, f.name) for f in fields(group)}
    values |= {name: value for name, value in given.items() if name not in _GROUPS}
    method = values.get("method")
    if not (isinstance(method, Method) and method.effort):
        values = {"effort": effort} | values
    return Settings(**values)


def recorded_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `stat_prune.prune` from ``report.settings``, or a part of it.

    The device of a report is where the run was, and not asked for again.

    Raises
    ------
    SettingsError
        If there is an unknown name, or a method or target that has no plain form.
    """
    known = [one.name for one in fields(Settings) if one.name not in _UNRECORDED]
    check_known("There is no setting", values, [*known, "target", *_OF_THE_RUN])
    left = {*_OF_THE_RUN, "device"} if _OF_THE_RUN & values.keys() else _OF_THE_RUN
    found = {name: value for name, value in values.items() if name not in left}
    if found.get("objective") == OF_WHOLE_ENCODERS:
        del found["objective"]
    method = found.get("method")
    if isinstance(method, str) and method.startswith(f"{Method.__name__}("):
        found["method"] = _called(method, {Method.__name__: Method})
    if isinstance(found.get("target"), Mapping):
        found["target"] = Target.from_dict(found["target"])
    elif "target" in found:
        found["target"] = _called(found["target"], {one.__name__: one for one in TARGETS})
    return found


def _called(text: Any, kinds: Mapping[str, Callable[..., Any]]) -> Any:
    """The object that a representation such as ``MACs(fraction=0.6)`` is of."""
    try:
        call: Any = ast.parse(text, mode="eval").body
        kind = kinds[call.func.id]
        positional = [ast.literal_eval(one) for one in call.args]
        named = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise SettingsError(
            f"{str(text)[:200]!r} is none of {', '.join(kinds)} with plain values. What has a "
            "function of Python in it has to be passed in Python."
        ) from error
    return kind(*positional, **named)
