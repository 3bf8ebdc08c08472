"""Ctrl-C: one line, which says how to go on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Interrupted(Exception):
    """In place of `KeyboardInterrupt`, of which typer makes an exit with the code of an error."""


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """A command, with its options, that raises `Interrupted`."""

    @functools.wraps(command)
    def call(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise Interrupted("Nothing was saved.") from None

    return call


@contextmanager
def resumable(folder: Path, remedy: str) -> Iterator[None]:
    """Work that is kept in a folder; where there is none, `remedy` says how to keep it."""
    try:
        yield
    except KeyboardInterrupt:
        if folder.is_dir():
            remedy = f"What is finished is in {folder}: go on with the same command and --resume."
        raise Interrupted(remedy) from None
