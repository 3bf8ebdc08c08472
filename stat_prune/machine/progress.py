"""How far long work has come: a bar where someone looks on, lines where it goes to a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

#: Seconds between two lines of one stage.
EVERY = 60.0


def progress_bar(
    items: Iterable[Any] | None = None, *, shown: bool, desc: str = "", unit: str = "step"
) -> Any:
    """A bar of tqdm, or what stands for it where stderr is no terminal; a context, too.

    Parameters
    ----------
    items : iterable, optional
        To be gone through.
    shown : bool
        Nothing is shown otherwise.
    desc : str
        What is done.
    unit : str
        Of one step.
    """
    if not shown or someone_looks_on():
        return tqdm(items, desc=desc or None, unit=unit, disable=not shown)
    return LogLines(items, desc)


def someone_looks_on() -> bool:
    """Whether bars are drawn: in a terminal or a notebook."""
    drawn = any(one.__module__ == "tqdm.notebook" for one in tqdm.__mro__)
    return drawn or sys.stderr.isatty()


class LogLines:
    """What is used of a bar, as lines on stderr: one a stage, and one a minute within a stage."""

    def __init__(self, items: Iterable[Any] | None = None, desc: str = "") -> None:
        self.total: int | None = None
        self._items, self._done, self._facts = items, 0, ""
        self._told: set[str] = set()
        self._begun = self._last = time.monotonic()
        self.set_description(desc)

    def set_description(self, desc: str) -> None:
        """Begin a stage; of one that was begun before, nothing is said."""
        self._desc = desc
        if desc and desc not in self._told:
            self._told.add(desc)
            self._say(desc)

    def set_postfix(self, facts: Mapping[str, str] | None = None, refresh: bool = True) -> None:
        """What is said beside the steps."""
        self._facts = "".join(f", {name}={value}" for name, value in (facts or {}).items())

    def update(self, steps: int = 1) -> None:
        """Steps that are done."""
        self._done += steps
        if time.monotonic() - self._last >= EVERY:
            of = "" if self.total is None else f" of {self.total}"
            self._say(f"{self._desc}, step {self._done}{of}{self._facts}")

    def refresh(self) -> None:
        """Nothing is drawn again in a file."""

    def __iter__(self) -> Iterator[Any]:
        for one in self._items or ():
            yield one
            self.update()

    def __enter__(self) -> LogLines:
        return self

    def __exit__(self, *_error: object) -> None:
        return

    def _say(self, what: str) -> None:
        self._last = time.monotonic()
        print(f"[{self._last - self._begun:.0f} s] {what}", file=sys.stderr, flush=True)
