"""Options of the commands, made from the dataclasses that hold what they say."""

from __future__ import annotations

import functools
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from stat_prune.errors import SettingsError
from stat_prune.settings.fields import Integer, Number, OneOf
from stat_prune.settings.methods import BASELINES, FINISHES, METHODS, Method
from stat_prune.settings.options import Calibration, Constraints

#: Field by option, and the class that documents it; those of methods have no default of their own.
_DOCUMENTED: dict[str, tuple[type, Field[Any]]] = {
    one.metadata.get("keyword", one.name): (kind, one)
    for kind in (Calibration, Constraints, Method)
    for one in fields(kind)
    if kind is not Method or "keyword" in one.metadata
}


def one_of(*names: str) -> Callable[[str | None], str | None]:
    """A callback that refuses every other value, as wrong usage."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}.")
        return value

    return check


def option(name: str) -> Any:
    """The option of a field, to annotate a parameter with: its bounds, or names, and its help."""
    kind, one = _DOCUMENTED[name]
    about, check = documentation(kind)[one.name], one.metadata["check"]
    if isinstance(check, Integer):
        return typer.Option(min=check.least, max=check.most, help=about)
    if isinstance(check, Number):
        return typer.Option(min=0, max=check.most, help=about)
    if isinstance(check, OneOf):
        return typer.Option(metavar="NAME", callback=one_of(*check.names), help=about)
    return typer.Option(f"--{name.replace('_', '-')}", help=about)


def _parameter(name: str) -> inspect.Parameter:
    """Of a command's signature."""
    if name in _BESIDE:
        return _of(name, *_BESIDE[name])
    kind, one = _DOCUMENTED[name]
    default = None if kind is Method else one.default
    types = {Integer: int, Number: float, OneOf: str}
    type_ = types.get(type(one.metadata["check"]), bool)
    return _of(name, type_ if default is not None else type_ | None, default, option(name))


def _of(name: str, type_: Any, default: Any, shown: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[type_, shown])


DEVICE = typer.Option(help="For instance cuda. Default: cpu.")
IGNORE = typer.Option(
    help="Leave alone: a layer number, heads, neurons, or a pattern of block names. May be "
    "repeated."
)
FINISH = typer.Option(
    metavar="NAME",
    callback=one_of(*FINISHES),
    help="Fit scales, biases and norms of the result to MODEL's outputs, without labels; "
    "lora: more numbers, for results that have lost much; weights: all of the layers, for examples "
    "by the ten thousand.",
)

#: Arguments of `stat_prune.prune` that are no fields: type, default and option.
_BESIDE: dict[str, tuple[Any, Any, Any]] = {
    "method": (
        str,
        "stat",
        typer.Option(
            metavar="NAME",
            callback=one_of(*METHODS, *BASELINES),
            help=f"One of {', '.join([*METHODS, *BASELINES])}.",
        ),
    ),
    "ignore": (list[str] | None, None, IGNORE),
    "device": (str | None, None, DEVICE),
    "finish": (str | None, None, FINISH),
}

_CONFIG = typer.Option(
    help="A .json or .toml file of settings, such as the report of an earlier run, for what is not "
    "given here; its target, too."
)

#: Every option of a pruning run.
ALL = ("method", *_DOCUMENTED, "ignore", "device", "finish")


def with_settings(*names: str, after: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options for settings, and ``--config``.

    The command has a last argument ``**settings``, for those that were given on the command line
    or in the file: arguments of `stat_prune.prune`.

    Parameters
    ----------
    *names : str
        Of `ALL`.
    after : str
        The argument of the command behind which they are shown.
    """
    made = [
        *map(_parameter, names),
        _of("config", Path | None, None, _CONFIG),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(_context: typer.Context, config: Path | None, **values: Any) -> None:
            settings = {} if config is None else settings_in(config)
            for name in names:
                value, source = values.pop(name), _context.get_parameter_source(name)
                if source is not None and source.name != "DEFAULT":
                    settings[name] = block_patterns(value) if name == "ignore" else value
            command(**values, **settings)

        own = inspect.signature(command, eval_str=True)
        context = _of("_context", typer.Context, inspect.Parameter.empty, None)
        parameters = [context.replace(annotation=typer.Context)]
        for one in own.parameters.values():
            if one.kind is not inspect.Parameter.VAR_KEYWORD:
                parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            if one.name == after:
                parameters += made
        call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        return call

    return decorate


def block_patterns(ignore: Iterable[str] | None) -> list[int | str]:
    """What to leave alone; layers are told by their numbers."""
    return [int(name) if re.fullmatch("-?[0-9]+", name) else name for name in ignore or ()]


def settings_in(path: Path) -> dict[str, Any]:
    """Arguments of `stat_prune.prune`, from a file of settings or the report of a run.

    Raises
    ------
    SettingsError
        If it cannot be read, or has what is no setting.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} holds no settings in JSON or TOML: {error}.") from error
    if isinstance(values, dict) and isinstance(values.get("settings"), dict):
        values = values["settings"]  # of a report
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds no settings, but {str(values)[:80]!r}.")
    from stat_prune.settings.settings import recorded_arguments

    return recorded_arguments(values)


def documentation(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of its attributes first, in plain words.

    Of numpydoc's section ``Attributes``: the first paragraph of each.
    """
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes\n----------\n")
    entries = re.split(r"^(\w+) : .*\n", section, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(inspect.cleandoc(body).partition("\n\n")[0].split()).replace("`", "")
        for name, body in zip(entries[::2], entries[1::2], strict=True)
    }
