"""Tables of numbers for tokens in a model: embeddings, and heads of language models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.errors import ModelError, TargetError
from stat_prune.families import token_embeddings
from stat_prune.model.dispatched import is_dispatched
from stat_prune.model.modeling_stat_prune import sharing_modules

#: What stacks that read tokens call their embeddings.
_OF_STACKS = {"embed_tokens", "shared"}

#: What a head is in a sentence.
HEAD_NAME = "language-model head"

#: Bytes of the number of an exact row's token.
_ID = 4


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
    def of_head(self) -> bool:
        """Whether it is a head with weights of its own."""
        return self.name == HEAD_NAME

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

    def exact_beside(self, rank: int, fraction: float, most: int) -> int:
        """Exact rows that there is room for within a fraction of the parameters, beside a rank."""
        room = fraction * self.parameters - self.cost(rank)
        return max(min(int(room / (self.width + self.ids(1) - rank)), most), 0)

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
        name=HEAD_NAME,
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
