"""Token embeddings and heads of language models, tied to them or not, as two thin factors.

Rows that weigh the most are kept as they are beside them, where that leaves a smaller error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.errors import NonFiniteWeightsError
from stat_prune.families import embedding_projection, token_embeddings
from stat_prune.linalg import ExactRows, LowRank
from stat_prune.linalg.exact_rows import WeightedTable
from stat_prune.model.factored_table import FactoredTable
from stat_prune.model.model_checks import beyond_range
from stat_prune.model.modeling_stat_prune import FORMATS, factor_embeddings, factor_head
from stat_prune.surgery.token_tables import Table, find_head, find_table, own_head, whole_rows

#: Of the mean of a metric's diagonal, what is added to it in every direction.
FLOOR = 0.01


class Shape(NamedTuple):
    """Of factors: their rank, and the tokens whose rows are kept as they are, ascending."""

    rank: int
    exact: Tensor


class TableFactors:
    """Factors of a table, beside any number of exact rows.

    There are as many of these at most as tokens that are read more than once. Which ones are read
    once is chance: the correction of blocks, which reads the same texts, would be solved for
    embeddings without the errors that other texts have.

    Parameters
    ----------
    rows : Tensor of shape (tokens, hidden)
    counts : Tensor of shape (tokens,), float64
        How often each is read. Their mean is added to each.
    metric : Tensor of shape (hidden, hidden), float64, optional
    """

    def __init__(self, rows: Tensor, counts: Tensor, metric: Tensor | None = None) -> None:
        self.rows, self._metric = rows, metric
        self._weights = (counts + counts.mean()).to(rows.device)
        self._most = int((counts > 1).sum())
        self._errors: dict[int, ExactRows] = {}

    def errors(self, rank: int) -> ExactRows:
        """What they leave, where exact rows are those that factors of a rank alone leave most of.

        Remembered, as budgets come back to few.
        """
        if rank not in self._errors:
            self._errors[rank] = self._table.exact_rows(rank, self._most)
        return self._errors[rank]

    @cached_property
    def _table(self) -> WeightedTable:
        return WeightedTable(self.rows, row_weights=self._weights, metric=self._metric)

    def shape(self, table: Table, fraction: float, multiple: int = 1) -> Shape | None:
        """Rank and exact rows within a fraction of a table that leave least; None for all of it.

        Raises
        ------
        TargetError
            If there are none.
        """
        rank = table.rank_for(fraction, multiple)
        if rank is None:
            return None
        errors = self.errors(rank)
        found = errors.within(
            fraction * table.parameters - table.width,
            per_rank=float(table.num_rows + table.width),
            per_row=table.width + table.ids(1),
            multiple=multiple,
        )
        assert found is not None  # that rank, without exact rows, is among them
        return Shape(found[0], errors.order[: found[1]].sort().values)

    def beside(self, exact: Tensor) -> LowRank:
        """The factors of all rows but exact ones."""
        return self._table.beside(exact)

    def relative_error(self, found: LowRank, rank: int) -> float:
        """Of factors, relative to that of the mean row alone, without exact rows."""
        whole = float(next(iter(self._errors.values())).errors[0, 0])
        return float(found.error_curve[rank]) * (found.energy / whole) ** 0.5 if whole else 0.0


def decompose_head(model: PreTrainedModel, counts: Tensor, moments: Tensor) -> TableFactors:
    """Factors of every rank of a language model's head, in the metric of the states it reads.

    Parameters
    ----------
    model : PreTrainedModel
    counts : Tensor of shape (tokens,), float64
        How often each is read, and so, about, is to be written; their mean is added to each.
    moments : Tensor of shape (hidden, hidden), float64
        Second moments E[h hᵀ] of the states. `FLOOR` of their mean square is added to every
        direction: of those that calibration has not seen nothing is known.
    """
    return TableFactors(whole_rows(own_head(model)), counts, _above_floor(moments))


def decompose_table(model: PreTrainedModel, counts: Tensor) -> TableFactors:
    """Factors of every rank of a model's token embeddings, also of those that are factored.

    Where a learned projection P is all that reads them, they are those of the smallest error of
    what it makes of them, but for norms and positions between: the metric is PᵀP, with `FLOOR` of
    the mean of its diagonal added. A head that shares the table reads it in another.

    Parameters
    ----------
    model : PreTrainedModel
    counts : Tensor of shape (tokens,), float64
        How often each is read, at least one at all. Their mean is added to each: what calibration
        has not seen may come, and the less it has read the less it knows of that.
    """
    reader, metric = embedding_projection(model), None
    if reader is not None and not find_table(model).tied_heads:
        weight = reader.weight.detach().to(torch.float64)
        metric = _above_floor(weight.T @ weight)
    return TableFactors(whole_rows(token_embeddings(model)), counts, metric)


def _above_floor(metric: Tensor) -> Tensor:
    mean = metric.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return metric + FLOOR * mean * torch.eye(len(metric)).to(metric)


def factor(
    model: PreTrainedModel, decomposition: TableFactors, fraction: float, multiple: int = 1
) -> FactoredTable | None:
    """Factor the token embeddings of a model, in place, and record it in the config.

    Parameters
    ----------
    model : PreTrainedModel
    decomposition : TableFactors
        Of its table.
    fraction : float
        Of the table's parameters to keep.
    multiple : int
        What the rank is kept to multiples of.

    Returns
    -------
    FactoredTable or None
        None where all is kept, and nothing was done.
    """
    table, old = find_table(model), token_embeddings(model)
    return _factored(
        model, "embeddings", table, old, factor_embeddings, decomposition, fraction, multiple
    )


def factor_own_head(
    model: PreTrainedModel, decomposition: TableFactors, fraction: float, multiple: int = 1
) -> FactoredTable | None:
    """Factor the head of a language model, as `factor` does its embeddings."""
    table, old = find_head(model), own_head(model)
    return _factored(model, "lm_head", table, old, factor_head, decomposition, fraction, multiple)


def _factored(
    model: PreTrainedModel,
    what: str,
    table: Table,
    old: Any,
    replaced: Callable[[Any, str, int, int | None], Any],
    decomposition: TableFactors,
    fraction: float,
    multiple: int,
) -> FactoredTable | None:
    """Fill and record the factors that `replaced` puts in place of a module."""
    shape = decomposition.shape(table, fraction, multiple)
    if shape is None:
        return None
    rank, exact = shape
    num_exact, rows = len(exact), decomposition.rows
    with torch.no_grad():
        found = decomposition.beside(exact)
        codes, basis, mean = _factors(found, rows, rank, old.weight.dtype)
        new = replaced(model, table.path, rank, num_exact or None)
        new.weight.copy_(codes)
        new.projection.weight.copy_(basis.T)
        new.projection.bias.copy_(mean)
        if num_exact:
            new.exact.ids.copy_(exact)
            new.weight[exact] = rows[exact, :rank].to(new.weight)
            new.exact.weight.copy_(rows[exact, rank:])
    _record(model, what, table.path, rank, num_exact)
    return FactoredTable(
        name=table.path,
        num_rows=table.num_rows,
        width=table.width,
        rank=rank,
        parameters_before=table.parameters,
        parameters=table.cost(rank, num_exact),
        decomposition="truncated SVD",
        error=decomposition.relative_error(found, rank),
        tied_heads=list(table.tied_heads),
        num_exact=num_exact,
    )


def _factors(
    found: LowRank, rows: Tensor, rank: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """F, T and the mean row."""
    codes, basis, mean = found.factors(rows, rank)
    largest = beyond_range((codes, basis, mean), dtype)
    if largest is not None:
        raise NonFiniteWeightsError(
            f"Factors of the embeddings or of the head reach {largest:.3g}, which {dtype} "
            "cannot hold. Prune the model in float32, and convert the result."
        )
    return codes, basis, mean


def _record(model: PreTrainedModel, what: str, path: str, rank: int, num_exact: int) -> None:
    record = getattr(model.config, "stat_prune", None) or {"linear": {}, "attributes": {}}
    exact = {name: n for name, n in record.get("exact_rows", {}).items() if name != what}
    exact |= {what: num_exact} if num_exact else {}
    record = {name: entry for name, entry in record.items() if name != "exact_rows"}
    record |= {"format": FORMATS[-1], what: {**record.get(what, {}), path: rank}}
    model.config.stat_prune = record | ({"exact_rows": exact} if exact else {})
