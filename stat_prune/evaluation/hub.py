"""Data sets of the Hub, each at one revision, so that a benchmark reads the same in a year."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stat_prune.errors import DataError

#: Commits of the data repositories.
REVISIONS = {
    "nyu-mll/glue": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
    "rajpurkar/squad": "7b6d24c440a36b6815f21b70d25016731768db1f",
    "rajpurkar/squad_v2": "3ffb306f725f7d2ce8394bc1873b24868140c412",
    "Salesforce/wikitext": "b08601e04326c79dfdd32d625aee71d232d685c3",
}


def hub_rows(
    name: str, split: str, *, config: str | None = None, instead: str
) -> Sequence[dict[str, Any]]:
    """The records of one split, from the Hub or its cache.

    Parameters
    ----------
    name : str
        A key of `REVISIONS`.
    split : str
    config : str, optional
    instead : str
        What to bring where there is no Hub, for the message.

    Raises
    ------
    DataError
        If it cannot be loaded.
    """
    import datasets  # with what it brings, tens of megabytes that pruning does not need

    try:
        return list(datasets.load_dataset(name, config, split=split, revision=REVISIONS[name]))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name} cannot be loaded ({error}). Without access to the Hub, name {instead}."
        ) from error
