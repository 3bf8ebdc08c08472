"""The names that the package itself offers, which are imported when they are first used."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import pytest

import stat_prune
from stat_prune.pruning import prune


def test_every_public_name_is_listed_and_can_be_imported():
    names: dict[str, object] = {}
    exec("from stat_prune import *", names)

    assert set(stat_prune.__all__) <= names.keys()
    assert set(stat_prune.__all__) <= set(dir(stat_prune))
    assert names["prune"] is stat_prune.prune is prune


def test_the_version_is_that_of_the_installed_distribution():
    assert stat_prune.__version__ == version("stat-prune")
    assert "__version__" in dir(stat_prune)


def test_other_names_do_not_exist():
    assert not hasattr(stat_prune, "shrink")
    with pytest.raises(ImportError, match="shrink"):
        from stat_prune import shrink  # noqa: F401


@pytest.mark.parametrize(
    "blamed", ["transformers.models.bert.modeling_bert", "stat_prune.pipeline.run", "test_models"]
)
def test_what_transformers_will_change_is_an_error_in_every_test(blamed):
    with pytest.raises(FutureWarning, match="will be gone"):
        warnings.warn_explicit("it will be gone", FutureWarning, "file.py", 1, module=blamed)
