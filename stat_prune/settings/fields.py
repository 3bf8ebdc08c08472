"""Dataclasses of settings: their fields check themselves, and go through JSON and back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Self, TypeVar

from stat_prune.errors import SettingsError
from stat_prune.settings.arguments import check_number, integer

Value = TypeVar("Value")

#: From the name of an argument and what was passed as it to what was meant.
Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Integer:
    """An integer within bounds."""

    least: int = 1
    most: int | None = None
    optional: bool = False

    def __call__(self, name: str, value: Any) -> int | None:
        """What was meant by a value."""
        if value is None and self.optional:
            return None
        return integer(name, value, self.least, self.most)


@dataclass(frozen=True)
class Number:
    """A number, from 0 on where `signed` is false; 0 itself may be left out."""

    most: float | None = None
    zero: bool = True
    signed: bool = False
    optional: bool = False

    def __call__(self, name: str, value: Any) -> float | None:
        """What was meant by a value."""
        if value is None and self.optional:
            return None
        check_number(name, value)
        low = not self.signed and (value < 0 or (value == 0 and not self.zero))
        if low or (self.most is not None and value > self.most):
            must = "not be negative" if self.zero else "be positive"
            if self.most is not None:
                must = f"lie in {'[' if self.zero else '('}0, {self.most:g}]"
            raise SettingsError(f"`{name}` must {must}, got {value!r}.")
        return float(value)


@dataclass(frozen=True)
class OneOf:
    """One of several names, or None where that is allowed, or a function."""

    names: tuple[str, ...]
    optional: bool = False
    function: str = ""  # what it is called where one is taken

    def __call__(self, name: str, value: Any) -> Any:
        """What was meant by a value."""
        if isinstance(value, str) and value in self.names:
            return value
        if value is None and self.optional:
            return None
        if self.function and callable(value):
            return value
        other = f", or {self.function}" if self.function else ", or None" if self.optional else ""
        raise SettingsError(
            f"`{name}` must be one of {', '.join(self.names)}{other}; got {value!r}."
        )


def checked(default: Value, check: Check, *, keyword: str | None = None) -> Value:
    """A field, and what its values must be; `keyword` is what `stat_prune.prune` calls it."""
    metadata = {"check": check} | ({} if keyword is None else {"keyword": keyword})
    made: Value = field(default=default, metadata=metadata)
    return made


class Plain(ABC):
    """A base of what comes from plain values and turns into them."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that is known of it, as plain values."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` came from."""

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The object that `to_json` came from.

        Raises
        ------
        SettingsError
            If the text is no object in JSON; else as for `from_dict`.
        """
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise SettingsError(f"A {cls.__name__} is an object in JSON, got {text[:80]!r}.")
        return cls.from_dict(values)


@dataclass(frozen=True)
class Config(Plain):
    """A base of dataclasses that come from plain values and turn into them.

    Fields that `checked` made hold what was meant by the values passed; for others there is a
    `SettingsError`, which names the field.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            check: Check | None = one.metadata.get("check")
            if check is not None:
                self._take(one.name, check(one.name, getattr(self, one.name)))

    def _take(self, name: str, value: Any) -> None:
        """Set an attribute to what was meant by it."""
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; functions go by their names."""
        return {one.name: plain(getattr(self, one.name)) for one in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The object that `to_dict` came from; fields that are not there have their defaults.

        Raises
        ------
        SettingsError
            If a field is unknown, or has a value that it cannot have.
        """
        check_known(f"{cls.__name__} has no field", values, [one.name for one in fields(cls)])
        return cls(**values)


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return getattr(value, "__qualname__", None) if callable(value) else value


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known, with those that are nearest.

    Raises
    ------
    SettingsError
    """
    known = list(known)
    unknown = [name for name in given if name not in known]
    if unknown:
        names = ", ".join(map(str, unknown))
        raise SettingsError(f"{what} {names}.{nearest(unknown[0], known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant by a name, as a sentence behind an error's."""
    found = get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
