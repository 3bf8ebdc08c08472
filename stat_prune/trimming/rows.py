"""A model with part of its vocabulary: rows of embeddings and heads, and ids in its configs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.errors import ModelError
from stat_prune.families import token_embeddings
from stat_prune.model.modeling_stat_prune import keep_exact_rows, sharing_modules
from stat_prune.surgery.token_tables import find_table, own_head

#: Fields of configs with ids of tokens, besides those that end in these.
_ENDINGS = ("token_id", "token_ids", "token_index")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")


def ids_in_configs(model: PreTrainedModel) -> set[int]:
    """Of the tokens that a model's configs name, such as padding and the end of a text."""
    return {at for config in _configs(model) for at in ids_in(config)}


def ids_in(holder: Any) -> set[int]:
    """Of the tokens that attributes of a config or module name."""
    fields = [value for name, value in vars(holder).items() if name.endswith(_ENDINGS)]
    return {at for value in fields for at in _integers(value)}


def keep_rows(model: PreTrainedModel, new: Mapping[int, int]) -> PreTrainedModel:
    """A copy of a model with the rows of some tokens, by old and new ids.

    Raises
    ------
    ModelError
        If something in it is of the size of the vocabulary and is not known to follow.
    """
    find_table(model)
    trimmed = copy.deepcopy(model)
    table: Any = token_embeddings(trimmed)
    embeddings = [one for one in sharing_modules(trimmed, table).values() if _pads(one)]
    padding = [one.padding_idx for one in embeddings]
    kept = torch.tensor(sorted(new, key=lambda at: new[at]), device=table.weight.device)
    others = torch.ones(len(table.weight), dtype=torch.bool, device=kept.device)
    others[kept] = False
    # Those that stay come first: what is behind them is cut off as transformers does it.
    order = torch.cat([kept, others.nonzero()[:, 0]])
    for tensor, axis in _of_the_vocabulary(trimmed, len(order)):
        tensor.data = tensor.data.index_select(axis, order)
    new_ids = torch.full((len(order),), -1)
    new_ids[kept.cpu()] = torch.arange(len(kept))
    keep_exact_rows(trimmed, "embeddings", table, new_ids)
    keep_exact_rows(trimmed, "lm_head", own_head(trimmed), new_ids)
    trimmed.resize_token_embeddings(len(kept), mean_resizing=False)
    for one, at in zip(embeddings, padding, strict=True):
        one.padding_idx = new.get(at)
    for config in _configs(trimmed):
        renumber(config, new)
    _check_sizes(trimmed)
    return trimmed


def _of_the_vocabulary(model: PreTrainedModel, size: int) -> Iterator[tuple[Tensor, int]]:
    """Tensors with an entry a token, each once, and along which axis."""
    head: Any = model.get_output_embeddings()
    named = [
        token_embeddings(model).weight,  # type: ignore[union-attr]
        getattr(head, "weight", None),
        getattr(head, "bias", None),
        getattr(model, "final_logits_bias", None),
    ]
    for tensor in {id(one): one for one in named if one is not None}.values():
        if size not in tensor.shape:
            raise ModelError(
                f"The head of {type(model).__name__} has shape {tuple(tensor.shape)}, and there "
                f"are {size} embeddings. Resize both (resize_token_embeddings) first."
            )
        yield tensor, tensor.shape.index(size)


def _check_sizes(model: PreTrainedModel) -> None:
    """Refuse what the model's own config would make otherwise."""
    with torch.device("meta"):
        made = type(model)._from_config(copy.deepcopy(model.config))
    expected = {name: one.shape for name, one in made.state_dict().items()}
    found = {name: one.shape for name, one in model.state_dict().items()}
    wrong = [name for name in expected if found.get(name) != expected[name]]
    if wrong:
        raise ModelError(
            f"{wrong[0]} of {type(model).__name__} is of shape {tuple(found.get(wrong[0], ()))} "
            f"after trimming, where the config asks for {tuple(expected[wrong[0]])}: it goes with "
            "the vocabulary in a way of its own. Trim the base model (AutoModel) instead."
        )


def _pads(module: Any) -> bool:
    return getattr(module, "padding_idx", None) is not None


def _configs(model: PreTrainedModel) -> list[Any]:
    found = [model.config, model.config.get_text_config()]
    generation = getattr(model, "generation_config", None)
    return list({id(one): one for one in [*found, generation] if one is not None}.values())


def _integers(value: Any) -> list[int]:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool)]


def renumber(holder: Any, new: Mapping[int, int]) -> None:
    """Ids in attributes of a config or module, in place; in lists, those that are left."""
    for name, value in list(vars(holder).items()):
        if not name.endswith(_ENDINGS) and name not in _LISTS:
            continue
        ids = _integers(value)
        if ids and isinstance(value, int):
            setattr(holder, name, new.get(value, value))
        elif ids:
            setattr(holder, name, [new[at] for at in ids if at in new])
