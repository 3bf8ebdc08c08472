"""What the names of linear layers and attributes say in models of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import nn

from stat_prune.families.architecture import Count

Role = Literal["query", "key", "value", "fused"]

_BEFORE, _AFTER = r"(?:w_?|to_|linear_|in_)?", r"(?:_?(?:proj|projection|lin|linear|head|layer))?"
_ROLES: dict[Role, re.Pattern[str]] = {
    "query": re.compile(f"{_BEFORE}(?:q|query){_AFTER}"),
    "key": re.compile(f"{_BEFORE}(?:k|key){_AFTER}"),
    "value": re.compile(f"{_BEFORE}(?:v|value){_AFTER}"),
    "fused": re.compile(f"{_BEFORE}(?:qkv|query_key_value|c_attn){_AFTER}|in_proj"),
}
_HEAD_SIZE = re.compile(
    r"(?:attention_|attn_)?head_(?:dim|size)|(?:d|dim|size)(?:_per)?_head|depth|key_value_proj_dim"
)
_COUNTS: dict[Count, re.Pattern[str]] = {
    "heads": re.compile(r"(?:num_|n_|nb_)?(?:attention_|attn_|query_|q_)?heads?"),
    "groups": re.compile(r"(?:num_|n_)?(?:key_value|kv)_heads?"),
    "heads_per_group": re.compile(r"(?:num_|n_)?(?:key_value|kv)_(?:groups|repeats)|n_rep"),
}
_CONSUMER = re.compile(r"(?:w_?)?o(?:ut|utput)?|dense|.*(?:out|o|c)_?(?:proj|lin|linear)|proj|wo")
_DOWN = re.compile(r".*(?:down|out|4h_to_h).*|(?:fc|lin|linear|w|dense)_?2|wo|c_proj|dense")


def role_of(path: str) -> Role | None:
    """What a linear layer makes for an attention layer, by the last part of its path."""
    name = path.rpartition(".")[2].lower()
    return next((role for role, names in _ROLES.items() if names.fullmatch(name)), None)


def sounds_like_output(path: str) -> bool:
    """Whether a linear layer could read the heads of an attention layer."""
    return _CONSUMER.fullmatch(path.rpartition(".")[2].lower()) is not None


def sounds_like_down(path: str) -> bool:
    """Whether a linear layer could read the neurons of a feed-forward network."""
    return _DOWN.fullmatch(path.rpartition(".")[2].lower()) is not None


def sounds_like_cross(path: str) -> bool:
    """Whether an attention layer could attend to what an encoder returns."""
    return re.search(r"cross|enc(?:oder)?_?(?:dec(?:oder)?)?_?att", path.lower()) is not None


def head_size_attribute(module: nn.Module) -> str | None:
    """The attribute that says the size of a head; None where the module has none."""
    return next((name for name in _integers(module) if _HEAD_SIZE.fullmatch(name)), None)


def counts(module: nn.Module, sizes: Mapping[Count, int]) -> dict[str, Count]:
    """The attributes that say how many heads of each kind there are.

    Parameters
    ----------
    module : nn.Module
    sizes : mapping of {"heads", "groups", "heads_per_group", "channels"} to int
        An attribute counts where its name and its value both say so.
    """
    return _counts_among(_integers(module), sizes)


def config_counts(module: nn.Module, sizes: Mapping[Count, int]) -> dict[str, Count]:
    """As `counts`, of the attributes of the config that the module has, as ``"config.x"``."""
    config = getattr(module, "config", None)
    if config is None:
        return {}
    names = ("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads")
    values = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return {f"config.{name}": count for name, count in _counts_among(values, sizes).items()}


def channel_attributes(module: nn.Module, channels: int) -> dict[str, Count]:
    """Attributes that equal the width of all heads together; it may be another width."""
    widths = [name for name, value in _integers(module).items() if value == channels]
    return {name: "channels" for name in widths if not _HEAD_SIZE.fullmatch(name)}


def _counts_among(values: Mapping[str, int], sizes: Mapping[Count, int]) -> dict[str, Count]:
    return {
        name: count
        for count, pattern in _COUNTS.items()
        for name, value in values.items()
        if pattern.fullmatch(name) and value == sizes[count]
    }


def _integers(module: nn.Module) -> dict[str, int]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_")
    }
