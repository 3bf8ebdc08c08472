"""The hidden dimensions of the residual stream: which tensors have them, and how they leave."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.checkpoints.checkpoint import stock_class
from stat_prune.errors import TargetError, UnsupportedArchitectureError
from stat_prune.families import find_blocks
from stat_prune.model.blocks import Block
from stat_prune.model.modeling_stat_prune import FORMATS

#: Families in which whatever reads the residual stream reads it through a norm.
FAMILIES = (
    "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "llama", "mistral", "qwen2",
    "qwen3",
)  # fmt: skip

#: Of the record of a pruned model, what does not depend on the hidden size.
_KEPT = ("added_biases", "position_bias", "no_heads", "head_dims")

#: Norms of queries and keys are over a head, whatever their size.
_OF_HEADS = ("q_norm", "k_norm")


def hidden_count(model: PreTrainedModel, fraction: float) -> int:
    """How many hidden dimensions a fraction is.

    BERT-like configs derive the size of a head from hidden size and number of heads and refuse what
    does not divide, so that the count is a multiple of the number of heads; no more than asked.

    Raises
    ------
    UnsupportedArchitectureError
        For other families than `FAMILIES`.
    TargetError
        If the fraction is none, or less than one multiple.
    """
    config: Any = model.config
    if config.model_type not in FAMILIES or stock_class(model) is None:
        raise UnsupportedArchitectureError(
            f"The hidden dimension of {type(model).__name__} cannot be pruned: what reads the "
            f"residual stream has to read it through a norm, as in {', '.join(FAMILIES)}. Leave "
            "hidden= away."
        )
    if isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise TargetError(f"`hidden` is the fraction that is kept, in (0, 1], got {fraction!r}.")
    step = config.num_attention_heads
    count: int = int(fraction * config.hidden_size + 1e-9) // step * step
    if not count:
        raise TargetError(
            f"hidden={fraction:g} of {config.hidden_size} dimensions is less than {step}, of which "
            "their number has to be a multiple. Ask for more."
        )
    return count


def norms(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The norms over hidden dimensions, by path."""
    size = model.config.hidden_size
    return {
        path: module
        for path, module in model.named_modules()
        if type(module).__name__.endswith("Norm")
        and path.rpartition(".")[2] not in _OF_HEADS
        and getattr(module, "weight", torch.empty(0)).shape == (size,)
    }


def outer_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers that belong to no block (pooler, head), by path."""
    own = {id(module) for module in _block_modules(model).values()}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in own
    }


def _block_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    base = model.base_model
    paths = [
        path
        for block in find_blocks(model)
        for path in (*(producer.path for producer in block.producers), block.consumer)
    ]
    return {path: base.get_submodule(path) for path in paths}


def _axes(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, tuple[int, ...]]]:
    """Every parameter with hidden dimensions: its owner, its name, and which axes they are."""
    size = model.config.hidden_size
    for module in norms(model).values():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, tuple(range(parameter.ndim))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == size:
            yield module, "weight", (1,)
    for linear in outer_linears(model).values():
        axes = tuple(axis for axis in (0, 1) if linear.weight.shape[axis] == size)
        yield linear, "weight", axes
        if linear.bias is not None and 0 in axes:
            yield linear, "bias", (0,)
    base = model.base_model
    for block in find_blocks(model):
        for producer in block.producers:
            yield base.get_submodule(producer.path), "weight", (1,)
        consumer = base.get_submodule(block.consumer)
        yield consumer, "weight", (0,)
        if consumer.bias is not None:
            yield consumer, "bias", (0,)


def other_parameters(model: PreTrainedModel, hidden: float | Tensor) -> float | Tensor:
    """Parameters outside the blocks' linear layers if so many hidden dimensions were left."""
    inside = {id(p) for module in _block_modules(model).values() for p in module.parameters()}
    axes = {id(getattr(module, name)): len(which) for module, name, which in _axes(model)}
    share: float | Tensor = hidden / model.config.hidden_size
    return sum(
        parameter.numel() * share ** axes.get(id(parameter), 0)
        for parameter in model.parameters()
        if id(parameter) not in inside
    )


@torch.no_grad()
def cut_hidden(model: PreTrainedModel, kept: Tensor, values: Tensor) -> None:
    """Remove hidden dimensions, in place: of every tensor that has them, and in the config.

    Norms take what is left times `values`, their statistics then being of the dimensions that are
    left. For a LayerNorm these are another mean and variance than before: it is the masked model,
    whose norms leave out the dimensions that have gone, that is reproduced, not the dense one.
    Layers of the config's new hidden size are rebuilt by the stock class; whatever else that would
    get wrong (heads keep their size) is recorded in the config.

    Parameters
    ----------
    model : PreTrainedModel
        Of `FAMILIES`.
    kept : Tensor of shape (k,), int64
        Ascending.
    values : Tensor of shape (hidden size,)
        Factors of what norms give.
    """
    scaled = [p for norm in norms(model).values() for p in norm.parameters(recurse=False)]
    for parameter in scaled:
        parameter.mul_(values.to(parameter))
    new: dict[int, nn.Parameter] = {}  # a head may share its weight with the embeddings
    for module, name, axes in list(_axes(model)):
        old = getattr(module, name)
        if id(old) not in new:
            rest = old.detach()
            for axis in axes:
                rest = rest.index_select(axis, kept.to(rest.device))
            new[id(old)] = nn.Parameter(rest.clone(), requires_grad=old.requires_grad)
            new[id(new[id(old)])] = new[id(old)]
        setattr(module, name, new[id(old)])
    for module in model.modules():
        _follow(module)
    config: Any = model.config
    if getattr(config, "head_dim", None) is not None:
        config.head_dim = config.head_dim  # said, no longer derived
    config.hidden_size = len(kept)
    for module in model.modules():
        if isinstance(getattr(module, "hidden_size", None), int):
            module.hidden_size = len(kept)  # type: ignore[assignment]
    _record(model)


def _follow(module: Any) -> None:
    """Let a module say the shapes that its parameters have."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)


def _record(model: PreTrainedModel) -> None:
    """Enter in the config what the stock class, built from the config, would get wrong."""
    config = copy.deepcopy(model.config)
    for name in ("stat_prune", "auto_map"):
        if hasattr(config, name):
            delattr(config, name)
    with torch.device("meta"):
        stock = cast(Any, stock_class(model))(config)
    previous = getattr(model.config, "stat_prune", None) or {}
    linear, attributes = {}, {}
    for path, module in model.base_model.named_modules():
        built = stock.base_model.get_submodule(path)
        if isinstance(module, nn.Linear):
            shapes = [[*one.weight.shape, one.bias is not None] for one in (module, built)]
            if shapes[0] != shapes[1]:
                linear[path] = shapes[0]
            continue
        theirs = _numbers(built)
        changed = {n: v for n, v in _numbers(module).items() if theirs.get(n, v) != v}
        if changed:
            attributes[path] = changed
    if not linear and not attributes:
        if previous:
            del model.config.stat_prune
        return
    model.config.stat_prune = {
        **{key: value for key, value in previous.items() if key in _KEPT},
        "format": FORMATS[-1],
        "linear": linear,
        "parameters": {},
        "attributes": attributes,
    }


def _numbers(module: nn.Module) -> dict[str, int | float]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float) and not name.startswith("_") and name != "training"
    }


def narrowed(blocks: Sequence[Block], hidden: Any) -> list[Block]:
    """The blocks as they would be between so many hidden dimensions, to be priced."""
    from dataclasses import replace

    return [replace(block, input_size=hidden, output_size=hidden) for block in blocks]
