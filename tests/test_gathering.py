"""What becomes of warnings when many blocks meet the same trouble."""

from __future__ import annotations

import warnings

import pytest

from stat_prune.linalg import NumericalWarning
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings


def test_one_warning_counts_the_blocks_and_shows_the_first():
    with pytest.warns(NumericalWarning, match="While folding, 2 blocks .* rank 3") as caught:
        with gathered_numerical_warnings("folding"):
            warnings.warn("rank 3", NumericalWarning, stacklevel=1)
            warnings.warn("rank 4", NumericalWarning, stacklevel=1)
    assert len(caught) == 1


def test_other_warnings_pass_through():
    with pytest.warns(UserWarning, match="something else"):
        with gathered_numerical_warnings("folding"):
            warnings.warn("something else", UserWarning, stacklevel=1)
