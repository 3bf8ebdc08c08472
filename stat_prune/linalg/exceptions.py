"""The error and the warning that report numerical trouble."""

from __future__ import annotations


class NonFiniteError(ValueError):
    """NaN or Inf in an argument, or in sums that overflow; the message says where."""


class NumericalWarning(RuntimeWarning):
    """A result was computed, but on fewer dimensions or with more regularisation than asked.

    The message states the figures: the numerical rank that was found, the ridge that was added,
    the number of entries that were bounded.
    """
