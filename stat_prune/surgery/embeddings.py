"""Token embeddings and heads of language models, tied to them or not, as two thin factors.

Rows that weigh the most are kept as they are beside them, where that leaves a smaller error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.errors import ModelError, NonFiniteWeightsError, TargetError
from stat_prune.families import token_embeddings
from stat_prune.linalg import ExactRows, LowRank, low_rank
from stat_prune.linalg.exact_rows import WeightedTable
from stat_prune.model.dispatched import is_dispatched
from stat_prune.model.factored_table import FactoredTable
from stat_prune.model.model_checks import beyond_range
from stat_prune.model.modeling_stat_prune import (
    FORMATS,
    factor_embeddings,
    factor_head,
    sharing_modules,
)

#: What stacks that read tokens call their embeddings.
_OF_STACKS = {"embed_tokens", "shared"}

#: Bytes of the number of an exact row's token.
_ID = 4

#: Of the mean square of the states that a head reads, what every direction is taken to have.
STATES_UNSEEN = 0.01


class Shape(NamedTuple):
    """Of factors: their rank, and the tokens whose rows are kept as they are, ascending."""

    rank: int
    exact: Tensor


@dataclass(frozen=True)
class Table:
    """Token embeddings of a model, or the head of a language model; whole or factored before.

    Attributes
    ----------
    path : str
        Below the base model; of a head, below the model itself.
    num_rows, width : int
        Tokens, and numbers of each embedding.
    rank : int or None
        Of the factors; None where the table is whole.
    tied_heads : tuple of str
        Paths of the heads that share it.
    name : str
        What it is in a sentence.
    num_exact : int
        Rows that are kept beside the factors.
    itemsize : int
        Bytes of a number.
    """

    path: str
    num_rows: int
    width: int
    rank: int | None
    tied_heads: tuple[str, ...] = ()
    name: str = "embeddings"
    num_exact: int = 0
    itemsize: int = 4

    @property
    def parameters(self) -> int:
        """As the table is."""
        if self.rank is None:
            return self.num_rows * self.width
        return self.cost(self.rank, self.num_exact)

    def cost(self, rank: int, num_exact: int = 0) -> int:
        """Parameters of the factors, the mean row and what exact rows have more than those of F."""
        in_factors = rank * (self.num_rows + self.width) + self.width
        return in_factors + num_exact * (self.width - rank)

    def shape_for(self, fraction: float, found: TableFactors, multiple: int = 1) -> Shape | None:
        """Rank and exact rows within a fraction that leave least; None for all of it.

        Raises
        ------
        TargetError
            If there are none.
        """
        rank = self.rank_for(fraction, multiple)
        if rank is None:
            return None
        errors = found.errors(rank)
        shape = errors.within(
            fraction * self.parameters - self.width,
            per_rank=float(self.num_rows + self.width),
            per_row=self.width + self.ids(1),
            multiple=multiple,
        )
        assert shape is not None  # that rank, without exact rows, is among them
        return Shape(shape[0], errors.order[: shape[1]].sort().values)

    def ids(self, num_exact: int) -> float:
        """What says which rows are exact, in numbers of the table's size."""
        return num_exact * _ID / self.itemsize

    def rank_for(self, fraction: float, multiple: int = 1) -> int | None:
        """The largest rank within a fraction of the parameters; None for all of them.

        Raises
        ------
        TargetError
            If there is none.
        """
        if fraction == 1:
            return None
        budget = fraction * self.parameters
        rank = int((budget - self.width) / (self.num_rows + self.width) * (1 + 1e-12))
        rank -= rank % multiple if rank >= multiple else 0
        if rank < 1:
            raise TargetError(
                f"{fraction:.4g} of the {self.name}' {self.parameters:,} parameters is less than "
                f"rank 1 takes, {self.cost(1) / self.parameters:.4g} of them. Ask for more."
            )
        return rank


def find_table(model: PreTrainedModel) -> Table:
    """The token embeddings of a model.

    Raises
    ------
    ModelError
        If it has none that can be factored, with the reason.
    """
    name = type(model).__name__
    table: Any = token_embeddings(model)
    if table is None:
        raise ModelError(f"{name} reads no tokens, and has no embeddings to factor.")
    if is_dispatched(model):
        raise ModelError(f"{name} has hooks of accelerate. Load it on one device, whole.")
    sharing = sharing_modules(model, table)
    for path, module in sharing.items():
        if not (_is_embedding(module) or isinstance(module, nn.Linear)):
            raise ModelError(
                f"{path} of {name} shares the token embeddings and is a {type(module).__name__}, "
                "which does more than look rows up or multiply them. Leave its embeddings whole."
            )
    names = {path.rpartition(".")[2] for path in sharing} | _OF_STACKS
    for path, module in model.named_modules():
        of_tokens = isinstance(module, nn.Embedding) and path.rpartition(".")[2] in names
        if of_tokens and path not in sharing:
            raise ModelError(
                f"{path} of {name} is another table of tokens, with weights of its own. Tables are "
                "factored where there is one, or where all are tied; leave these whole."
            )
    factored = is_factored(table)
    return Table(
        path=_path_below(model.base_model, table),
        num_rows=len(table.weight),
        width=table.projection.out_features if factored else table.weight.shape[1],
        rank=table.weight.shape[1] if factored else None,
        num_exact=_num_exact(table),
        itemsize=table.weight.element_size(),
        tied_heads=tuple(path for path, one in sharing.items() if isinstance(one, nn.Linear)),
    )


def find_head(model: PreTrainedModel) -> Table:
    """The head of a language model, where it has weights of its own.

    Raises
    ------
    ModelError
        If it has none that can be factored, with the reason.
    """
    name, head = type(model).__name__, own_head(model)
    if head is None:
        output, table = model.get_output_embeddings(), token_embeddings(model)
        if output is not None and table is not None and output.weight is table.weight:
            raise ModelError(
                f"The head of {name} is its token embeddings: both are made smaller at once. Give "
                "the fraction as that of the embeddings, and leave lm_head out."
            )
        raise ModelError(
            f"{name} has no head of a language model that is a plain linear layer. Leave lm_head "
            "out, or load the model with such a head (AutoModelForCausalLM)."
        )
    if is_dispatched(model):
        raise ModelError(f"{name} has hooks of accelerate. Load it on one device, whole.")
    factored = is_factored(head)
    return Table(
        path=next(path for path, one in model.named_modules() if one is head),
        num_rows=len(head.weight),
        width=head.projection.out_features if factored else head.weight.shape[1],
        rank=head.weight.shape[1] if factored else None,
        num_exact=_num_exact(head),
        itemsize=head.weight.element_size(),
        name="language-model head",
    )


def own_head(model: PreTrainedModel) -> Any:
    """The head of a language model that shares no weight with embeddings; None without one."""
    head: Any = model.get_output_embeddings()
    if head is None or not (type(head) is nn.Linear or is_factored(head)):
        return None
    tied = any(
        one.weight is head.weight for one in model.modules() if isinstance(one, nn.Embedding)
    )
    return None if tied else head


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

    def beside(self, exact: Tensor) -> LowRank:
        """The factors of all rows but exact ones."""
        others = self._weights.index_fill(0, exact, 0.0)
        return low_rank(self.rows, row_weights=others, metric=self._metric)

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
        Second moments E[h hᵀ] of the states. `STATES_UNSEEN` of their mean square is added to every
        direction: of those that calibration has not seen nothing is known.
    """
    mean = moments.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    metric = moments + STATES_UNSEEN * mean * torch.eye(len(moments)).to(moments)
    return TableFactors(whole_rows(own_head(model)), counts, metric)


def decompose_table(model: PreTrainedModel, counts: Tensor) -> TableFactors:
    """Factors of every rank of a model's token embeddings, also of those that are factored.

    Parameters
    ----------
    model : PreTrainedModel
    counts : Tensor of shape (tokens,), float64
        How often each is read, at least one at all. Their mean is added to each: what calibration
        has not seen may come, and the less it has read the less it knows of that.
    """
    return TableFactors(whole_rows(token_embeddings(model)), counts)


def whole_rows(table: Any) -> Tensor:
    """The rows of embeddings or of a head, factored or not, tokens x hidden.

    Those of factors are products, in float32 at least.
    """
    weight: Tensor = table.weight.detach()
    if not is_factored(table):
        return weight
    basis, mean = table.projection.weight.detach(), table.projection.bias.detach()
    kind = torch.promote_types(weight.dtype, torch.float32)
    rows = torch.addmm(mean.to(kind), weight.to(kind), basis.to(kind).T)
    exact = getattr(table, "exact", None)
    if exact is not None:
        rows[exact.ids.long()] = exact.rows(weight).detach().to(kind)
    return rows


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
    shape = table.shape_for(fraction, decomposition, multiple)
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


def _num_exact(table: Any) -> int:
    exact = getattr(table, "exact", None)
    return 0 if exact is None else len(exact.ids)


def bytes_of_ids(model: PreTrainedModel) -> int:
    """Bytes that say which rows are exact, each once."""
    modules: list[Any] = [one for one in model.modules() if _num_exact(one)]
    return sum({id(one.exact): one.exact.ids.nbytes for one in modules}.values())


def is_factored(table: nn.Module) -> bool:
    """Whether embeddings are factored; those of a folder's own copy of the modeling file, too."""
    return hasattr(table, "projection")


def _is_embedding(module: nn.Module) -> bool:
    """Whether a module looks rows up, and multiplies them with a number at most."""
    scaled = isinstance(module, nn.Embedding) and hasattr(module, "embed_scale")
    return type(module) is nn.Embedding or scaled


def _path_below(base_model: nn.Module, table: nn.Module) -> str:
    path: str = next(path for path, one in base_model.named_modules() if one is table)
    return path
