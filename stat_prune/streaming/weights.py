"""A checkpoint on disk: a model without weights, and its weights when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from stat_prune import modeling_stat_prune
from stat_prune.architectures import transformer_layers
from stat_prune.checkpoint import saved_class
from stat_prune.clock import return_freed_memory
from stat_prune.errors import LoadError, ModelError


class Checkpoint:
    """A model on the meta device, and the safetensors files that its weights are read from.

    Parameters
    ----------
    folder : Path
        With ``config.json`` and ``model.safetensors``, or shards and their index.
    device : torch.device
        Where weights go.

    Attributes
    ----------
    model : PreTrainedModel
        In evaluation mode; a parameter has values while it is loaded.
    files : list of Path
        Of the weights.
    num_layers : int

    Raises
    ------
    LoadError
        If a file is missing or damaged, or lacks a weight of the model.
    ModelError
        If the checkpoint stores weights in another layout than the model has them.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.files = _weight_files(folder)
        held = {key: file for file in self.files for key in _keys(file)}
        self.model = _empty_model(folder, lambda: self._read(*next(iter(held.items()))[::-1]).dtype)
        for module in self.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(device))
        self._sources = _sources(self.model, held)
        base = next(
            p for p, module in self.model.named_modules() if module is self.model.base_model
        )
        self._base = f"{base}." if base else ""
        paths = {module: path for path, module in self.model.named_modules()}
        self._layers = [f"{paths[layer]}." for layer in transformer_layers(self.model)]
        self.num_layers = len(self._layers)

    def layer_names(self, layer: int) -> list[str]:
        """Parameters and saved buffers of a layer."""
        return self._names(lambda name: name.startswith(self._layers[layer]))

    def weight_name(self, path: str) -> str:
        """The weight of a linear layer below the base model."""
        return f"{self._base}{path}.weight"

    def outer_names(self, *, base: bool, head: bool) -> list[str]:
        """Those of no layer, below the base model or in the head."""
        layers = tuple(self._layers)
        return self._names(
            lambda name: (
                not name.startswith(layers) and (base if name.startswith(self._base) else head)
            )
        )

    def num_bytes(self, names: Iterable[str]) -> int:
        """What weights take in memory; a tied one counts once."""
        sources = {self._sources[name]: name for name in names}
        return sum(_tensor(self.model, name).nbytes for name in sources.values())

    def embedding_names(self) -> list[str]:
        """The token embeddings, where the model reads tokens."""
        embeddings = self.embeddings()
        paths = {module: path for path, module in self.model.named_modules()}
        return [] if embeddings is None else [f"{paths[embeddings]}.weight"]

    def embeddings(self) -> nn.Embedding | None:
        """The module of the token embeddings."""
        try:
            embeddings = self.model.get_input_embeddings()
        except NotImplementedError:  # a model that reads no text
            return None
        return embeddings if isinstance(embeddings, nn.Embedding) else None

    def _names(self, wanted: Callable[[str], bool]) -> list[str]:
        return [name for name in self._sources if wanted(name)]

    def load(self, names: Iterable[str]) -> None:
        """Read weights into the model; names of one tied weight get one tensor.

        Raises
        ------
        LoadError
            If a file cannot be read, or a shape is not the model's.
        """
        together: dict[tuple[Path, str], list[str]] = {}
        for name in names:
            together.setdefault(self._sources[name], []).append(name)
        for source, group in together.items():
            old = _tensor(self.model, group[0])
            new = self._read(*source)
            if new.shape != old.shape:
                raise LoadError(
                    f"{source[1]} in {source[0]} has the shape {tuple(new.shape)}, but config.json "
                    f"makes {group[0]} of the shape {tuple(old.shape)}. Save the model again."
                )
            self._put(group, new.to(self.device, old.dtype))

    def release(self, names: Iterable[str]) -> None:
        """Forget the values of weights, and of those tied to them."""
        released = {self._sources[name] for name in names}
        for source in released:
            group = [name for name, own in self._sources.items() if own == source]
            self._put(group, torch.empty_like(_tensor(self.model, group[0]), device="meta"))
        return_freed_memory()

    def release_embeddings(self) -> None:
        """Forget the token embeddings: the model goes on to run, with zeros for each token."""
        embeddings = self.embeddings()
        if embeddings is None:
            return
        row = torch.zeros(1, embeddings.embedding_dim, dtype=self.model.dtype, device=self.device)
        embeddings.weight = nn.Parameter(row.expand(embeddings.weight.shape), requires_grad=False)

    def state_dict(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Weights of the model by name."""
        return {name: _tensor(self.model, name).detach() for name in names}

    def _put(self, names: Iterable[str], tensor: Tensor) -> None:
        parameter: nn.Parameter | None = None
        for name in names:
            owner_path, _, last = name.rpartition(".")
            owner = self.model.get_submodule(owner_path)
            if last in owner._parameters:
                # safetensors gives no gradients, and nothing is trained on the way
                if parameter is None:
                    parameter = nn.Parameter(tensor, requires_grad=False)
                setattr(owner, last, parameter)
            else:
                setattr(owner, last, tensor)

    @staticmethod
    def _read(file: Path, key: str) -> Tensor:
        """A tensor in memory of its own: pages of the file are counted while it is mapped."""
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(key).clone()
        except (OSError, SafetensorError) as error:
            raise _damaged(file, error) from error


def _weight_files(folder: Path) -> list[Path]:
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


def _keys(file: Path) -> list[str]:
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


def _empty_model(folder: Path, stored_dtype: Callable[[], torch.dtype]) -> PreTrainedModel:
    """The model that a folder's config names, its parameters on the meta device."""
    config, model_class = saved_class(folder)
    model = empty_model(config, model_class, config.dtype or stored_dtype())
    if model.can_generate() and (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    modeling_stat_prune.keep_names(model)
    return model.eval()


def empty_model(
    config: PreTrainedConfig, model_class: type[PreTrainedModel], dtype: str | torch.dtype
) -> PreTrainedModel:
    """A model whose parameters are on the meta device."""
    with _parameters_on_meta():
        model: PreTrainedModel = model_class._from_config(config, dtype=dtype)
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that modules get have no values; buffers do, as no checkpoint has them all."""

    def forget(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        # Tied weights stay one object.
        return None if parameter.is_meta else nn.Parameter(parameter.to("meta"))

    hook: Any = forget  # annotated in torch as one that returns nothing
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _sources(model: PreTrainedModel, held: dict[str, Path]) -> dict[str, tuple[Path, str]]:
    """File and key of every parameter and saved buffer, by its name in the model."""
    state = model.state_dict()
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    sources: dict[str, tuple[Path, str]] = {}
    for key, file in held.items():
        name, conversion = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if conversion is not None and name in state and key != name:
            raise ModelError(
                f"The checkpoint of {type(model).__name__} stores {name} in another layout "
                f"({key}), which needs the whole model. Load it and use stat_prune.prune."
            )
        sources[name if name in state else key] = (file, key)
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


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), last)
    assert isinstance(tensor, Tensor)
    return tensor
