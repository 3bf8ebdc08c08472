"""Token embeddings and heads of language models, tied to them or not, as two thin factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.errors import ModelError, NonFiniteWeightsError, TargetError
from stat_prune.families import token_embeddings
from stat_prune.linalg import LowRank, low_rank
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

#: Of the mean square of the states that a head reads, what every direction is taken to have.
STATES_UNSEEN = 0.01


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
    """

    path: str
    num_rows: int
    width: int
    rank: int | None
    tied_heads: tuple[str, ...] = ()
    name: str = "embeddings"

    @property
    def parameters(self) -> int:
        """As the table is."""
        return self.num_rows * self.width if self.rank is None else self.cost(self.rank)

    def cost(self, rank: int) -> int:
        """Parameters of the factors and the mean row."""
        return rank * (self.num_rows + self.width) + self.width

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


def decompose_head(model: PreTrainedModel, counts: Tensor, moments: Tensor) -> LowRank:
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
    head = own_head(model)
    mean = moments.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    metric = moments + STATES_UNSEEN * mean * torch.eye(len(moments)).to(moments)
    outer = _outer(head)
    if outer is not None:
        metric = outer @ metric @ outer.T
    smoothed = (counts + counts.mean()).to(head.weight.device)
    return low_rank(head.weight.detach(), row_weights=smoothed, metric=metric)


def decompose_table(model: PreTrainedModel, counts: Tensor) -> LowRank:
    """Factors of every rank of a model's token embeddings; of a factored table, of its codes.

    Parameters
    ----------
    model : PreTrainedModel
    counts : Tensor of shape (tokens,), float64
        How often each is read, at least one at all. Their mean is added to each: what calibration
        has not seen may come, and the less it has read the less it knows of that.
    """
    table: Any = token_embeddings(model)
    weight, outer = table.weight.detach(), _outer(table)
    # What is left out of the codes of a factored table is seen through its basis.
    metric = None if outer is None else outer @ outer.T
    smoothed = (counts + counts.mean()).to(weight.device)
    return low_rank(weight, row_weights=smoothed, metric=metric)


def factor(
    model: PreTrainedModel, decomposition: LowRank, fraction: float, multiple: int = 1
) -> FactoredTable | None:
    """Factor the token embeddings of a model, in place, and record it in the config.

    Parameters
    ----------
    model : PreTrainedModel
    decomposition : LowRank
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
    model: PreTrainedModel, decomposition: LowRank, fraction: float, multiple: int = 1
) -> FactoredTable | None:
    """Factor the head of a language model, as `factor` does its embeddings."""
    table, old = find_head(model), own_head(model)
    return _factored(model, "lm_head", table, old, factor_head, decomposition, fraction, multiple)


def _factored(
    model: PreTrainedModel,
    what: str,
    table: Table,
    old: Any,
    replaced: Callable[[Any, str, int], Any],
    decomposition: LowRank,
    fraction: float,
    multiple: int,
) -> FactoredTable | None:
    """Fill and record the factors that `replaced` puts in place of a module."""
    rank = table.rank_for(fraction, multiple)
    if rank is None:
        return None
    with torch.no_grad():
        codes, basis, mean = _factors(old, decomposition, rank)
        new = replaced(model, table.path, rank)
        new.weight.copy_(codes)
        new.projection.weight.copy_(basis.T)
        new.projection.bias.copy_(mean)
    _record(model, what, table.path, rank)
    return FactoredTable(
        name=table.path,
        num_rows=table.num_rows,
        width=table.width,
        rank=rank,
        parameters_before=table.parameters,
        parameters=table.cost(rank),
        decomposition="truncated SVD",
        error=float(decomposition.error_curve[rank]),
        tied_heads=list(table.tied_heads),
    )


def _factors(old: Any, decomposition: LowRank, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """F, T and the mean row."""
    weight, outer = old.weight.detach(), _outer(old)
    codes, basis, mean = decomposition.factors(weight, rank)
    if outer is not None:
        basis, mean = basis @ outer, old.projection.bias.detach().double() + mean @ outer
    largest = beyond_range((codes, basis, mean), weight.dtype)
    if largest is not None:
        raise NonFiniteWeightsError(
            f"Factors of the embeddings or of the head reach {largest:.3g}, which {weight.dtype} "
            "cannot hold. Prune the model in float32, and convert the result."
        )
    return codes, basis, mean


def _outer(table: Any) -> Tensor | None:
    """T of a table that is factored, in float64."""
    return table.projection.weight.detach().double().T if is_factored(table) else None


def _record(model: PreTrainedModel, what: str, path: str, rank: int) -> None:
    record = getattr(model.config, "stat_prune", None) or {"linear": {}, "attributes": {}}
    ranks = record.get(what, {}) | {path: rank}
    model.config.stat_prune = {**record, "format": FORMATS[-1], what: ranks}


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
