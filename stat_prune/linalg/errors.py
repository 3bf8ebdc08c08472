"""The warning that reports numerical trouble."""

from __future__ import annotations


class NumericalWarning(RuntimeWarning):
    """A result was computed, but on fewer dimensions or with more regularisation than asked.

    The message states the figures: the numerical rank that was found, the ridge that was added,
    the number of entries that were bounded.
    """
