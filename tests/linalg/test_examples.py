"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest

from stat_prune import linalg

MODULES = [f"{linalg.__name__}.{module.name}" for module in pkgutil.iter_modules(linalg.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name, capsys):
    failed = doctest.testmod(import_module(name)).failed
    assert not failed, capsys.readouterr().out


@pytest.mark.parametrize("name", [n for n in linalg.__all__ if inspect.isfunction(vars(linalg)[n])])
def test_every_public_function_has_an_example(name):
    assert doctest.DocTestFinder().find(getattr(linalg, name), name)[0].examples
