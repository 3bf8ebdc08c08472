"""Whether transformers takes a config: what it refuses can be neither saved nor opened."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedConfig, PreTrainedModel

from stat_prune.errors import UniformSizesWarning
from stat_prune.families import stacks_of
from stat_prune.model.blocks import Block


def config_error(config: PreTrainedConfig) -> Exception | None:
    """Why transformers does not take a config; None if it does."""
    try:
        if hasattr(config, "validate"):
            config.validate()
        type(config).from_dict(config.to_dict())
    except Exception as error:  # each config class has checks of its own
        return error
    return None


def set_fields(config: PreTrainedConfig, fields: Mapping[str, int]) -> None:
    """Set fields of a config, ``text_config.x`` in one that it has."""
    for name, value in fields.items():
        owner, _, field = name.rpartition(".")
        setattr(getattr(config, owner) if owner else config, field, value)


def takes(config: PreTrainedConfig, fields: Mapping[str, int]) -> bool:
    """Whether a config can say the values of some fields."""
    changed = copy.deepcopy(config)
    set_fields(changed, fields)
    return config_error(changed) is None


def of_sizes_that_configs_say(
    model: PreTrainedModel, blocks: Sequence[Block], why: str = "uniform=True"
) -> list[Block]:
    """Blocks that are kept to the numbers of heads that the model's config takes.

    A warning says so, and `why`, where that rules out any.

    Configs of Llama, Gemma 2 and 3 refuse numbers that do not divide the hidden size, whatever
    they say of the head size. Where a config takes none, no number is better than another.
    """
    fields = {
        attention.name: attention.config_heads
        for stack, _ in stacks_of(model)
        for attention in stack.attentions
    }
    known: dict[object, frozenset[tuple[int, int]] | None] = {}

    def sizes(block: Block) -> frozenset[tuple[int, int]] | None:
        names = fields.get(block.part)
        if names is None:
            return None
        key = (names, block.num_units, block.num_groups, block.unit_size)
        if key not in known:
            every = _sizes_of(block)
            taken = {
                size
                for size in every
                if takes(model.config, dict(zip(names, (*size, block.unit_size), strict=True)))
            }
            known[key] = frozenset(taken) if 0 < len(taken) < len(every) else None
            if known[key] is not None:
                _warn(model, taken, block, why)
        return known[key]

    return [replace(block, sizes=sizes(block)) for block in blocks]


def warn_if_not_plain(model: PreTrainedModel) -> None:
    """Say that a model whose layers are alike has sizes all the same that its config cannot say."""
    if not getattr(model.config, "stat_prune", None):
        return
    warnings.warn(
        f"uniform=True: the layers are alike, but a {type(model.config).__name__} cannot say their "
        "sizes: the folder opens with stat_prune.load or trust_remote_code=True. For one that "
        "plain transformers opens, prune neurons alone (target=MACs({'neurons': ...})).",
        UniformSizesWarning,
        stacklevel=3,
    )


def _sizes_of(block: Block) -> list[tuple[int, int]]:
    """Numbers of query heads, equally many of each key/value head that stays, and of those."""
    members = range(1, block.units_per_group + 1)
    return [(n * each, n) for n in range(1, block.num_groups + 1) for each in members]


def _warn(model: PreTrainedModel, sizes: set[tuple[int, int]], block: Block, why: str) -> None:
    numbers = sorted({units for units, _ in sizes})
    warnings.warn(
        f"{why}: a {type(model.config).__name__} refuses numbers of heads that do not "
        f"divide the hidden size, so that of the {block.num_units} heads {_listed(numbers)} can "
        f"stay. Where that is too coarse, leave {why} out, or ignore='heads'.",
        UniformSizesWarning,
        stacklevel=2,
    )


def _listed(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
