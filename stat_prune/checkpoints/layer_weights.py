"""A checkpoint on disk: a model without weights, and its weights when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from stat_prune.checkpoints.checkpoint_files import Source, sources_of
from stat_prune.checkpoints.loading import saved_class
from stat_prune.checkpoints.weight_files import keys_in, read_weight, weight_files
from stat_prune.errors import LoadError
from stat_prune.families import token_embeddings, transformer_layers
from stat_prune.model import modeling_stat_prune
from stat_prune.model.model_checks import check_weights_are_finite


class Checkpoint:
    """A model on the meta device, and the safetensors files that its weights are read from.

    Parameters
    ----------
    folder : Path
        With ``config.json`` and ``model.safetensors``, or shards and their index.
    device : torch.device
        Where weights go.
    auto_class : str, optional
        As for `stat_prune.load`.

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
        If the model makes several weights of one that is stored.
    """

    def __init__(self, folder: Path, device: torch.device, auto_class: str | None = None) -> None:
        self.folder, self.device = folder, device
        self.files = weight_files(folder)
        held = {key: file for file in self.files for key in keys_in(file)}
        self.model = _empty_model(
            folder, lambda: read_weight(*next(iter(held.items()))[::-1]).dtype, auto_class
        )
        for module in self.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(device))
        self._sources = sources_of(self.model, held)
        base = next(
            p for p, module in self.model.named_modules() if module is self.model.base_model
        )
        self._base = f"{base}." if base else ""
        paths = {module: path for path, module in self.model.named_modules()}
        self._layers = [f"{paths[layer]}." for layer in transformer_layers(self.model)]
        self.num_layers = len(self._layers)

    def digests(self) -> dict[str, str]:
        """sha256 of the config and of all files of weights."""
        config = (self.folder / "config.json").read_bytes()
        weights = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                weights.update(hashlib.file_digest(file, "sha256").digest())
        return {"config.json": hashlib.sha256(config).hexdigest(), "weights": weights.hexdigest()}

    def layer_names(self, layer: int) -> list[str]:
        """Parameters and saved buffers of a layer."""
        return self._names(lambda name: name.startswith(self._layers[layer]))

    def weight_name(self, path: str) -> str:
        """The weight of a linear layer below the base model, or of all experts beside one."""
        name = f"{self._base}{path}"
        layer = f"{name}.weight"
        return layer if layer in self._sources else name.rpartition(".")[0]

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
        embeddings = token_embeddings(self.model)
        paths = {module: path for path, module in self.model.named_modules()}
        return [] if embeddings is None else [f"{paths[embeddings]}.weight"]

    def _names(self, wanted: Callable[[str], bool]) -> list[str]:
        return [name for name in self._sources if wanted(name)]

    def check_finite(self) -> None:
        """Read everything once, tensor by tensor, and refuse what is not finite.

        Raises
        ------
        NonFiniteWeightsError
        """
        # Of the names of a tied weight the first.
        names = {source: name for name, source in reversed(self._sources.items())}
        stored = (
            (name, read_weight(file, key))
            for source, name in names.items()
            for file, key, _ in source.parts
        )
        check_weights_are_finite(self.model, stored)

    def load(self, names: Iterable[str]) -> None:
        """Read weights into the model; names of one tied weight get one tensor.

        Raises
        ------
        LoadError
            If a file cannot be read, or a shape is not the model's.
        """
        together: dict[Source, list[str]] = {}
        for name in names:
            together.setdefault(self._sources[name], []).append(name)
        for source, group in together.items():
            old = _tensor(self.model, group[0])
            new = source.read(group[0], self.model)
            if new.shape != old.shape:
                file, key, _ = source.parts[0]
                raise LoadError(
                    f"{key} in {file} has the shape {tuple(new.shape)}, but config.json makes "
                    f"{group[0]} of the shape {tuple(old.shape)}. Save the model again."
                )
            self._put(group, new.to(self.device, old.dtype))

    def release(self, names: Iterable[str]) -> None:
        """Forget the values of weights, and of those tied to them."""
        released = {self._sources[name] for name in names}
        for source in released:
            group = [name for name, own in self._sources.items() if own == source]
            self._put(group, torch.empty_like(_tensor(self.model, group[0]), device="meta"))

    @contextmanager
    def loaded(self, names: Sequence[str]) -> Iterator[None]:
        """Some weights are in memory."""
        self.load(names)
        yield
        self.release(names)

    def release_embeddings(self) -> None:
        """Forget the token embeddings: the model goes on to run, with zeros for each token.

        Of factored ones the factor with a row a token, and not what is multiplied with it or kept
        beside it, which a tied head may have in common with them.
        """
        embeddings = token_embeddings(self.model)
        if embeddings is None:
            return
        width = embeddings.weight.shape[1]
        row = torch.zeros(1, width, dtype=self.model.dtype, device=self.device)
        embeddings.weight = nn.Parameter(row.expand(embeddings.weight.shape), requires_grad=False)

    @contextmanager
    def head(self) -> Iterator[None]:
        """What stands behind the layers is in memory, and the token embeddings are not."""
        names, embedding = self.outer_names(base=True, head=True), self.embedding_names()
        self.load(name for name in names if name not in embedding)
        self.release_embeddings()
        yield
        self.release(names)

    def state_dict(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Weights of the model by name."""
        return {name: _tensor(self.model, name).detach() for name in names}

    def outer_state(self) -> dict[str, Tensor]:
        """Weights of no layer by name, as they are now: what has been put in place of some, too."""
        layers, state = tuple(self._layers), self.model.state_dict()
        return {name: one for name, one in state.items() if not name.startswith(layers)}

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


def _empty_model(
    folder: Path, stored_dtype: Callable[[], torch.dtype], auto_class: str | None
) -> PreTrainedModel:
    """The model that a folder's config names, its parameters on the meta device."""
    config, model_class = saved_class(folder, auto_class)
    model = empty_model(config, model_class, config.dtype or stored_dtype())
    if model.can_generate() and (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    modeling_stat_prune.keep_names(model)
    model.eval()
    return model


def empty_model(
    config: PreTrainedConfig, model_class: type[PreTrainedModel], dtype: str | torch.dtype
) -> PreTrainedModel:
    """A model whose parameters are on the meta device.

    Raises
    ------
    LoadError
        If the config makes none.
    """
    try:
        with _parameters_on_meta():
            model: PreTrainedModel = model_class._from_config(config, dtype=dtype)
    except Exception as error:  # of every kind, as each class computes with its fields
        raise LoadError(
            f"The config makes no {model_class.__name__} ({type(error).__name__}: {error}). Copy "
            "or download it again."
        ) from error
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


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), last)
    assert isinstance(tensor, Tensor)
    return tensor
