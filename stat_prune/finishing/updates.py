"""What a finish changes of a model, in a form in which it is fitted and then folded in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    is_parametrized,
    register_parametrization,
    remove_parametrizations,
)
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection

#: Of the low-rank updates of `Updates`.
RANK = 16


def root_mean_square(tensor: Tensor) -> float:
    """Of the entries."""
    return float(tensor.detach().square().mean().sqrt())


class Scales(nn.Module):
    """A factor for every channel that a weight reads.

    Parameters
    ----------
    weight : Tensor of shape (..., out_features, in_features)
    channels : int
        The dimension of the channels.

    Attributes
    ----------
    sizes : list of float
        What the rate of each parameter is relative to.
    """

    def __init__(self, weight: Tensor, channels: int) -> None:
        super().__init__()
        shape = list(weight.shape)
        shape[-3 - channels] = 1  # of the last two, the other one: -1 for -2 and -2 for -1
        self.scales = nn.Parameter(weight.new_ones(shape))
        self.sizes = [1.0]

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with every channel scaled."""
        return weight * self.scales


class LowRankUpdate(nn.Module):
    """An update of low rank, zero at the start (LoRA, Hu et al. 2021, arXiv:2106.09685).

    Parameters
    ----------
    weight : Tensor of shape (..., rows, columns)
    rank : int
    generator : torch.Generator
        Of the right factor.

    Attributes
    ----------
    sizes : list of float
        As of `Scales`.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        *experts, rows, columns = weight.shape
        right = torch.randn(*experts, rank, columns, generator=generator) / rank**0.5
        self.left = nn.Parameter(weight.new_zeros(*experts, rows, rank))
        self.right = nn.Parameter(right.to(weight))
        # A step of the left factor changes as large a part of any weight's entries, as the right
        # one's are of size rank**-0.5; which moves ten times as fast, for its size.
        self.sizes = [root_mean_square(weight), 10 * rank**-0.5]

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its update."""
        return weight + self.left @ self.right


class Updates:
    """Scales (or updates of low rank, or weights), biases and norms of a model, to be fitted.

    Parameters
    ----------
    model : PreTrainedModel
        In float32; changed.
    blocks : sequence of Block
        Those of the dense model: their layers are where they were.
    kind : {"scales", "lora", "weights"}
        ``"scales"``: of the channels that the consumers read. ``"lora"``: low-rank updates of
        consumers and producers. ``"weights"``: those themselves.
    seed : int
    """

    def __init__(
        self, model: PreTrainedModel, blocks: Iterable[Block], kind: str, seed: int
    ) -> None:
        base = model.base_model
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        model.requires_grad_(False)
        # All are found before one is changed: the experts of a set have one tensor.
        places = dict.fromkeys(_place(base, path) for path in _paths(blocks, kind))
        self._places = {
            (module, name): names[id(getattr(module, name))]
            for module, name in places
            if getattr(module, name).numel()
        }
        generator = torch.Generator().manual_seed(seed)
        self.weights: list[Tensor] = []
        self.sizes: list[float] = []
        for module, name in self._places:
            weight = getattr(module, name)
            if kind == "weights":
                self.weights.append(weight.requires_grad_(True))
                self.sizes.append(root_mean_square(weight))
                continue
            update: Scales | LowRankUpdate = (
                Scales(weight, -2 if isinstance(module, Conv1D) else -1)
                if kind == "scales"
                else LowRankUpdate(weight, RANK, generator)
            )
            register_parametrization(module, name, update)
            self.weights += update.parameters()
            self.sizes += update.sizes
        # Biases and norms. A vector of the base model is one of these, whatever the family's names.
        self.vectors = [one for one in base.parameters() if one.ndim == 1 and one.numel()]
        self._vector_names = [names[id(one)] for one in self.vectors]
        for vector in self.vectors:
            vector.requires_grad_(True)

    @property
    def numbers(self) -> list[Tensor]:
        """All that is fitted."""
        return [*self.weights, *self.vectors]

    def values(self) -> list[Tensor]:
        """A copy of all that is fitted."""
        return [one.detach().clone() for one in self.numbers]

    def set(self, values: Iterable[Tensor]) -> None:
        """Take up what `values` has given."""
        with torch.no_grad():
            for tensor, value in zip(self.numbers, values, strict=True):
                tensor.copy_(value)

    def folded(self) -> dict[str, Tensor]:
        """The weights that are changed, by name; the model has them, and is as it was otherwise."""
        for module, name in self._places:
            if is_parametrized(module, name):
                remove_parametrizations(module, name)
        changed: dict[str, Any] = {
            path: getattr(module, name) for (module, name), path in self._places.items()
        }
        changed |= dict(zip(self._vector_names, self.vectors, strict=True))
        return {name: tensor.detach() for name, tensor in changed.items()}


def _paths(blocks: Iterable[Block], kind: str) -> list[str]:
    paths = []
    for block in blocks:
        paths += [block.consumer]
        if kind != "scales":
            paths += [producer.path for producer in block.producers]
    return paths


def _place(base: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a weight, and its name there; that of all experts for one of them."""
    found = projection(base, path)
    return found.module, "weight" if found.expert is None else path.split(".")[-2]
