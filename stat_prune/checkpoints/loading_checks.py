"""Whether what was loaded is all that was saved."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from stat_prune.checkpoints.weight_files import keys_in, weight_files
from stat_prune.errors import LoadError, StatPruneError
from stat_prune.families import find_blocks, supported_model_types

_NUM_LAYERS = re.compile(r"num_(hidden_|encoder_|decoder_)?layers|n_layers?|(en|de)coder_layers")

_LAYER = re.compile(r"\.\d+\.")


def check_layers(directory: Path) -> None:
    """Refuse numbers of layers beyond any that the weights can be of, which would all be made.

    Raises
    ------
    LoadError
        For weights that are missing or pickled, too.
    """
    keys = {key for file in weight_files(directory) for key in keys_in(file)}
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(
            f"{str(directory)!r} cannot be loaded: its config.json: {error}. Save the model again."
        ) from error
    for name, value in _entries(config):
        if _NUM_LAYERS.fullmatch(name) and isinstance(value, int) and value > len(keys):
            raise LoadError(
                f"{str(directory)!r} has {len(keys)} weights, and its config.json says "
                f"{name}={value}. Save the model again."
            )


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """All names and values of a config, and of those in it."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield name, value
            yield from _entries(value)


def check_complete(
    model: PreTrainedModel,
    found: Mapping[str, Any],
    directory: str | os.PathLike[str],
    *,
    new_head: bool = False,
) -> None:
    """Refuse a model of which a weight was missing, or for some of whose weights it has no place.

    Parameters
    ----------
    model : PreTrainedModel
    found : mapping of str to Any
        What transformers says of loading it.
    directory : path
    new_head : bool
        Whether another class than the saved one was asked for: what is neither a layer nor an
        embedding may be missing, and be left over.

    Raises
    ------
    LoadError
        Naming a weight.
    """
    name, place = type(model).__name__, str(directory)
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if new_head:
        embedded = {id(p) for p in model.get_input_embeddings().parameters()}
        needed = {key for key, p in model.named_parameters() if id(p) in embedded}
        missing = [key for key in missing if _LAYER.search(key) or key in needed]
    if missing:
        raise LoadError(
            f"{place!r} lacks {len(missing)} weights of the {name} that is to be made of it, such "
            f"as {missing[0]}. Save the model again; or, where it has no such head, pass "
            "auto_class='AutoModel' (--auto-class AutoModel)."
        )
    pruned = bool(getattr(model.config, "stat_prune", None))
    patterns = {_pattern(key) for key in model.state_dict()}
    # Checkpoints of a whole pre-training hold heads that one class has and another has not.
    whole = pruned and not new_head
    stray = [key for key in unexpected if whole or _pattern(key) in patterns]
    if stray:
        raise LoadError(
            f"{place!r} has {len(stray)} weights that the {name} of its config.json has no place "
            f"for, such as {stray[0]}. Save the model again, with the config that it has."
        )
    if pruned and model.config.model_type in supported_model_types():
        try:
            _check_record(model)
        except (StatPruneError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise LoadError(
                f"In {place!r} the record of sizes in config.json (stat_prune) does not fit the "
                f"weights: {error} Save the model again."
            ) from error


def _check_record(model: PreTrainedModel) -> None:
    """Refuse a record whose counts are not those of the weights.

    Raises
    ------
    ValueError
    """
    record, blocks = model.config.stat_prune, find_blocks(model)
    known: dict[str, dict[str, int]] = {}
    for block in blocks:
        for path, counts in block.remembered(block.num_units, block.num_groups).items():
            known.setdefault(path, {}).update(counts)
    for path, values in record["attributes"].items():
        kind = type(model.base_model.get_submodule(path))
        for name, value in values.items():
            right = known.get(path, {}).get(name, value)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value != right or not is_number or callable(getattr(kind, name, None)):
                raise ValueError(f"{name} of {path} is {value!r}.")
    empty = {path for block in blocks if not block.num_units for path in block.attributes}
    if strange := record.get("no_heads", {}).keys() - empty:
        raise ValueError(f"{min(strange)} has heads.")


def _pattern(key: str) -> str:
    """A weight's name in whatever layer."""
    return re.sub(r"\b\d+\b", "#", key)
