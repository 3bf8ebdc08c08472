"""What a config says of the sizes of a pruned model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from stat_prune.families import find_blocks, stacks_of
from stat_prune.model.modeling_stat_prune import FORMATS
from stat_prune.surgery.config_checks import set_fields, takes
from stat_prune.surgery.per_layer_config import forget_layer_sizes, say_layer_sizes

#: Entries of the record about factored embeddings and heads, which no config can say otherwise.
_OF_TABLES = ("embeddings", "lm_head", "exact_rows")
#: Entries that are there only where they say something.
_OPTIONAL = ("position_bias", "no_heads", "added_biases", "head_dims", *_OF_TABLES)


def record(model: PreTrainedModel, changes: dict[str, Any]) -> None:
    """Say in the config of a model, just cut, what sizes it has.

    Where the config has fields for them they are set, and no record of sizes is kept.

    Parameters
    ----------
    model : PreTrainedModel
    changes : dict
        Entries of the record, of this cut alone.
    """
    config: Any = model.config
    whole = _merged(getattr(config, "stat_prune", None) or {}, changes)
    # No config says that some layers of a family have a bias which its stock layers lack, which
    # heads share a position bias, or that values have another size than keys.
    bound = any(name in whole for name in ("added_biases", "position_bias", "head_dims"))
    stock = None if bound else uniform_config(model)
    if stock is None:
        config.stat_prune = whole
        say_layer_sizes(model)
        return
    forget_layer_sizes(config)
    set_fields(config, stock)
    factored = {name: whole[name] for name in _OF_TABLES if name in whole}
    if factored:
        config.stat_prune = {"format": FORMATS[-1], "linear": {}, "attributes": {}, **factored}
    elif hasattr(config, "stat_prune"):
        del config.stat_prune


def _merged(before: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The record of what was cut before and of what has been cut now."""

    def both(name: str) -> dict[str, Any]:
        return {**before.get(name, {}), **changes.get(name, {})}

    attributes = {
        path: {**before.get("attributes", {}).get(path, {}), **values}
        for path, values in both("attributes").items()
    }
    merged: dict[str, Any] = {
        "format": FORMATS[-1],
        "linear": both("linear"),
        "parameters": both("parameters"),
        "attributes": attributes,
        "position_bias": both("position_bias"),
        "no_heads": both("no_heads"),
        "added_biases": [*before.get("added_biases", []), *changes.get("added_biases", [])],
        "head_dims": both("head_dims"),
        **{name: both(name) for name in _OF_TABLES},
    }
    return {name: entry for name, entry in merged.items() if entry or name not in _OPTIONAL}


def uniform_config(model: PreTrainedModel) -> dict[str, int] | None:
    """The config fields that say a model's sizes, or None if its family's config cannot.

    It cannot where layers differ, where a block has nothing left, and where the number of heads is
    bound to the hidden size, by the family's layers or by checks of the config's own.
    """
    sizes: dict[str, set[tuple[int, int, int]]] = {}
    blocks = find_blocks(model)
    for block in blocks:
        size = (block.num_units, block.num_groups, block.unit_size)
        sizes.setdefault(block.part, set()).add(size)
    if any(len(found) > 1 for found in sizes.values()) or not all(b.num_units for b in blocks):
        return None
    input_sizes = {block.part: block.input_size for block in blocks}
    fields: dict[str, int] = {}
    for stack, _ in stacks_of(model):
        for attention in stack.attentions:
            for size in sizes.get(attention.name, ()):
                if attention.config_heads is not None:
                    fields |= dict(zip(attention.config_heads, size, strict=True))
                # Heads of a narrowed stream are larger than the config would make them.
                elif (size[0], size[0] * size[2]) != (
                    getattr(model.config, "num_attention_heads", size[0]),
                    input_sizes[attention.name],
                ):
                    return None
        for feed_forward in stack.feed_forwards:
            for size in sizes.get(feed_forward.name, ()):
                if feed_forward.config_neurons is None:
                    return None
                fields[feed_forward.config_neurons] = size[0]
    return fields if takes(model.config, fields) else None
