"""The sizes of layers where transformers itself looks for them: ``config.per_layer_config``.

The pruned class reads its own record (`modeling_stat_prune`). But what counts heads
without looking at a module reads the config: caches that are made ahead of the first keys, and
servers that make the attention layers themselves. transformers takes them layer by layer there from
5.16 on; older versions keep the entry and do not read it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from transformers import PreTrainedConfig, PreTrainedModel

from stat_prune.families import find_blocks, stacks_of
from stat_prune.families.architecture import Architecture
from stat_prune.model.blocks import Block
from stat_prune.surgery.config_checks import takes

#: Entries of a config that say the sizes of layers to transformers.
FIELDS = ("per_layer_config", "allow_global_per_layer_attribute_access")

_HEADS = "num_attention_heads"
#: Those of an attention layer that has lost all heads: it keeps one number a token in the cache.
_NO_HEADS = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 1}


def say_layer_sizes(model: PreTrainedModel) -> None:
    """Let the config of a model say the sizes of its layers, one by one, in place.

    Only of models with one stack of layers that reads text, each with weights of its own: elsewhere
    the numbers of a config are not those of one list of layers.
    """
    forget_layer_sizes(model.config)
    if not says_layers(model):
        return
    blocks = find_blocks(model)
    ((stack, layers),) = stacks_of(model)
    sizes: list[dict[str, int]] = [{} for _ in layers]
    for block in blocks:
        sizes[block.layer] |= _fields(block, stack, model.config)
    # What a config says of some layers it has to say of all, or of the whole.
    known = {name for name in set().union(*sizes) if hasattr(model.config, name)}
    known |= set(sizes[0]).intersection(*sizes)
    model.config.allow_global_per_layer_attribute_access = True
    # Layers are often alike, and the config is the same until all have been asked about.
    admits = cache(lambda heads: takes(model.config, {_HEADS: heads}))
    model.config.per_layer_config = {
        str(layer): _admitted({n: v for n, v in fields.items() if n in known}, admits)
        for layer, fields in enumerate(sizes)
    }


def says_layers(model: PreTrainedModel) -> bool:
    """Whether the numbers of a config are those of one list of layers."""
    (stack, layers), *others = stacks_of(model)
    count = getattr(model.config, "num_hidden_layers", None)
    if others or stack.signal is not None or count != len(layers):
        return False
    return all(block.calls == 1 for block in find_blocks(model))


def says_heads(config: PreTrainedConfig) -> bool:
    """Whether a config can say a number of heads apart from their size."""
    # Falcon's divides the hidden size by the number of heads, and cannot be told another.
    computed = isinstance(getattr(type(config), "head_dim", None), property)
    return hasattr(config, "num_attention_heads") and not computed


def forget_layer_sizes(config: PreTrainedConfig) -> None:
    """Let a config say nothing of single layers."""
    if hasattr(type(config), "per_layer_config"):
        config.per_layer_config = None
    for name in FIELDS:
        vars(config).pop(name, None)


def _fields(block: Block, stack: Architecture, config: PreTrainedConfig) -> dict[str, int]:
    """What a config calls the sizes of a block; nothing where it has no name for them."""
    if block.kind == "neurons":
        (name,) = (one.config_neurons for one in stack.feed_forwards if one.name == block.part)
        return {name: block.num_units} if name is not None and "." not in name else {}
    if not says_heads(config):
        return {}
    if block.num_units == 0:
        return _NO_HEADS
    fields = {"num_attention_heads": block.num_units, "num_key_value_heads": block.num_groups}
    # Else the hidden size is divided by the number of heads.
    return fields | {"head_dim": block.unit_size}


def _admitted(fields: dict[str, int], admits: Callable[[int], bool]) -> dict[str, int]:
    """The fields of a layer without a number of heads that the config refuses.

    Those of Llama and Gemma 2 ask that it divide the hidden size, and would not be opened again.
    """
    if _HEADS in fields and not admits(fields[_HEADS]):
        return {other: value for other, value in fields.items() if other != _HEADS}
    return fields
