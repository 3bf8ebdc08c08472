"""The page on errors names all of them, and shows messages that the library has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import stat_prune
from stat_prune import errors
from stat_prune.errors import StatPruneError

ROOT = Path(stat_prune.__file__).parent.parent
PAGE = (ROOT / "docs" / "what_can_go_wrong.md").read_text(encoding="utf-8")

CLASSES = [
    name
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, (StatPruneError, Warning))
]


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_and_warning_is_on_the_page(name):
    assert f"`{name}`" in PAGE or f"stat_prune.{name}`" in PAGE


def test_no_class_is_on_the_page_that_the_library_does_not_have():
    named = set(re.findall(r"`(\w+(?:Error|Warning))`", PAGE))
    ours = {*CLASSES, "NumericalWarning", "ValueError", "OSError", "ArithmeticError"}
    assert named <= ours | {"RuntimeError"}


def test_every_moment_has_its_section():
    moments = ["Before the run", "Data", "Numbers", "Targets", "Saving", "Loading", "Command line"]
    assert re.findall(r"^## (.*)$", PAGE, re.M) == moments


def test_the_readme_leads_to_the_page():
    assert "docs/what_can_go_wrong.md" in (ROOT / "README.md").read_text(encoding="utf-8")
