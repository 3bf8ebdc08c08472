"""What each attention head attends to, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stat_prune.errors import DataError


@dataclass(frozen=True)
class HeadStatistics:
    """Means over the query positions of a calibration set, padding left out.

    Shares of attention overlap: a special token that attends to itself counts as special and as
    current.

    Attributes
    ----------
    values : dict of str to dict of str to Tensor of shape (heads,), float64
        By block name and statistic:

        - ``entropy``: of the attention weights, in nats.
        - ``normalized_entropy``: divided by the logarithm of the number of visible keys, over
          queries that see two keys or more; 1 is uniform attention.
        - ``sparsity``: share of the visible keys with a weight below `threshold`.
        - ``gini``: Gini coefficient of the weights of the visible keys; 0 is uniform attention.
        - ``distance``: mean distance from the query to what it attends to, in tokens.
        - ``to_current``, ``to_neighbors``: share of attention on the token itself, and on the one
          before and the one after it.

        and, where the tokenizer is known:

        - ``confidence``: the largest weight on a key that is no special token, over queries that
          are none (Voita et al. 2019, arXiv:1905.09418, section 4).
        - ``to_special``, ``to_content``: share of attention on special tokens and on content words
          (`stat_prune.attention.TokenClasses`).
    num_sequences, num_tokens : int
    threshold : float
    """

    values: dict[str, dict[str, Tensor]]
    num_sequences: int
    num_tokens: int
    threshold: float

    @property
    def names(self) -> list[str]:
        """The statistics that were measured."""
        return list(next(iter(self.values.values())))

    def columns(self, statistic: str) -> list[np.ndarray]:
        """One statistic, an ndarray of shape (heads,) a layer.

        Raises
        ------
        DataError
            If it was not measured.
        """
        if statistic not in self.names:
            raise DataError(
                f"{statistic!r} was not measured; there are {', '.join(self.names)}. Statistics of "
                "kinds of tokens need the tokenizer: head_statistics(..., tokenizer=...)."
            )
        return [values[statistic].numpy() for values in self.values.values()]

    def table(self, statistic: str) -> np.ndarray:
        """`columns` as an ndarray of shape (layers, heads), NaN beyond the heads of a layer."""
        columns = self.columns(statistic)
        table = np.full((len(columns), max(map(len, columns))), np.nan)
        for row, column in zip(table, columns, strict=True):
            row[: len(column)] = column
        return table

    def rows(self) -> list[dict[str, Any]]:
        """A dict a head, with its block and number, for a table or a data frame."""
        return [
            {"block": name, "head": head}
            | {statistic: float(column[head]) for statistic, column in values.items()}
            for name, values in self.values.items()
            for head in range(len(values["entropy"]))
        ]
