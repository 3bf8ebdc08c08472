"""Many warnings of one kind become one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from stat_prune.linalg import NumericalWarning


@contextmanager
def gathered_numerical_warnings(what: str) -> Iterator[None]:
    """Replace the `NumericalWarning` of each block by one that counts them and shows the first.

    Parameters
    ----------
    what : str
        What was being done.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    numerical = [one for one in caught if issubclass(one.category, NumericalWarning)]
    for one in caught:
        if one not in numerical:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if numerical:
        warnings.warn(
            f"While {what}, {len(numerical)} blocks met rank loss; the first: "
            f"{numerical[0].message}",
            NumericalWarning,
            stacklevel=3,
        )
