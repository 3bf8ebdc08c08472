"""The safetensors files of a checkpoint, and which weight of the model each part of them is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from stat_prune.errors import LoadError, ModelError


@dataclass(frozen=True)
class Source:
    """Where a weight of the model comes from.

    Attributes
    ----------
    parts : tuple of (Path, str, str)
        File, key, and the pattern of the conversion that takes the key.
    converter : WeightConverter or None
        What makes the weight of the parts, where the model has another layout than the files:
        experts are one tensor in the model, and one each on disk.
    """

    parts: tuple[tuple[Path, str, str], ...]
    converter: WeightConverter | None = None

    def read(self, name: str, model: PreTrainedModel) -> Tensor:
        """The weight, as the model has it.

        Raises
        ------
        LoadError
            If a file cannot be read.
        """
        if self.converter is None:
            ((file, key, _),) = self.parts
            return read_weight(file, key)
        for file, key, pattern in self.parts:
            reading: Any = partial(read_weight, file, key)  # annotated as a future alone
            self.converter.add_tensor(name, key, pattern, reading)
        made = self.converter.convert(name, model=model, config=model.config)
        tensor = made[name]
        return tensor[0] if isinstance(tensor, list) else tensor


def sources_of(model: PreTrainedModel, held: dict[str, Path]) -> dict[str, Source]:
    """Where every parameter and saved buffer comes from, by its name in the model.

    Raises
    ------
    LoadError
        If one comes from nowhere.
    ModelError
        If several are made of one that is stored.
    """
    state = model.state_dict()
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    sources: dict[str, Source] = {}
    parts: dict[str, list[tuple[Path, str, str]]] = {}
    for key in sorted(held, key=dot_natural_key):  # experts in the order of their numbers
        name, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if pattern is not None and name in state and key != name:
            if len(by_pattern[pattern].target_patterns) > 1:
                raise ModelError(
                    f"{type(model).__name__} makes several weights of {key}, which needs the whole "
                    "model. Load it and use stat_prune.prune."
                )
            parts.setdefault(name, []).append((held[key], key, pattern))
        else:
            sources[name if name in state else key] = Source(((held[key], key, ""),))
    for name, taken in parts.items():
        sources[name] = Source(tuple(taken), by_pattern[taken[0][2]])
    for group in _tied(model):
        known = next((sources[name] for name in group if name in sources), None)
        sources |= {name: known for name in group if known is not None and name not in sources}
    missing = [name for name in state if name not in sources]
    if missing:
        raise LoadError(
            f"The checkpoint has no weights for {len(missing)} parameters of "
            f"{type(model).__name__}, such as {missing[0]}. Save the whole model again."
        )
    return {name: sources[name] for name in state}


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all of them there."""
    if not folder.is_dir():
        raise LoadError(f"{str(folder)!r} is not a folder. Pass the folder of a checkpoint.")
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if not index.is_file():
        raise LoadError(
            f"{str(folder)!r} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}. Save "
            "the model with save_pretrained, which writes safetensors."
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise _damaged(index, error) from error
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise LoadError(
            f"{str(folder)!r} lacks {len(missing)} of the {len(files)} shards that its index "
            f"names, such as {missing[0]}. Download or copy the checkpoint again."
        )
    return files


def keys_in(file: Path) -> list[str]:
    """Names in a safetensors file, whose length is checked against its header."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> LoadError:
    return LoadError(
        f"{str(file)!r} is damaged or cannot be read: {error}. Download or copy the file again."
    )


def read_weight(file: Path, key: str) -> Tensor:
    """A tensor in memory of its own: pages of the file are counted while it is mapped."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(key).clone()
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error
