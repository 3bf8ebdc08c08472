"""Blocks: sets of channels that can leave a transformer together, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["heads", "neurons"]
KINDS: tuple[Kind, ...] = ("heads", "neurons")


@dataclass(frozen=True)
class Block:
    """Channels made by some linear layers (producers) and read by exactly one (the consumer).

    A *unit* is what can leave: a neuron of a feed-forward network, or a query head of an attention
    layer, which is ``unit_size`` consecutive channels of the consumer's input. Where keys and
    values are shared (grouped-query attention), a key/value head leaves with its last query head.

    Attributes
    ----------
    name : str
        Path of the layer and the kind, for instance ``"encoder.layer.0.heads"``.
    kind : {"heads", "neurons"}
    layer : int
    consumer : str
        Path, below the base model, of the linear layer that reads the channels.
    producers : tuple of str
        Paths of linear layers with ``unit_size`` output rows for each unit.
    shared_producers : tuple of str
        Paths of linear layers with ``unit_size`` output rows for each key/value head.
    num_units : int
    unit_size : int
    num_groups : int
        Number of key/value heads; equal to `num_units` where nothing is shared.
    input_size, output_size : int
        Width of what the producers read and of what the consumer writes.
    attributes : mapping of str to mapping of str to str
        ``{module path: {attribute: "heads" | "channels" | "heads_per_group"}}``: the counts that
        modules remember and that have to follow.
    num_biases : tuple of int
        Number of producers, shared producers and consumers (0 or 1) that have a bias.
    """

    name: str
    kind: Kind
    layer: int
    consumer: str
    producers: tuple[str, ...]
    shared_producers: tuple[str, ...]
    num_units: int
    unit_size: int
    num_groups: int
    input_size: int
    output_size: int
    num_biases: tuple[int, int, int]
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def num_channels(self) -> int:
        """Width of the consumer's input."""
        return self.num_units * self.unit_size

    @property
    def units_per_group(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_units // self.num_groups

    def channels(self, units: Tensor) -> Tensor:
        """Channels of the consumer's input that belong to `units`, in their order.

        Parameters
        ----------
        units : Tensor of shape (k,), int64

        Returns
        -------
        Tensor of shape (k * unit_size,), int64
        """
        offsets = torch.arange(self.unit_size, device=units.device)
        return (units[:, None] * self.unit_size + offsets).reshape(-1)

    def groups(self, units: Tensor) -> Tensor:
        """Key/value heads that the query heads `units` need, ascending; int64."""
        return torch.unique(units // self.units_per_group)

    def macs(self, num_units: int, num_groups: int, seq_length: float) -> float:
        """Multiply-accumulates for one sequence of `seq_length` tokens.

        Kwon et al. 2022 (arXiv:2204.09656), appendix; with shared keys and values the two
        projections are counted once a key/value head.
        """
        size, s = self.unit_size, seq_length
        per_unit = s * size * (len(self.producers) * self.input_size + self.output_size)
        if self.kind == "heads":
            per_unit += 2 * s * s * size
        return (
            num_units * per_unit
            + num_groups * s * size * len(self.shared_producers) * self.input_size
        )

    def parameters(self, num_units: int, num_groups: int) -> int:
        """Weights and biases of the block's linear layers."""
        own, shared, consumer = self.num_biases
        per_unit = len(self.producers) * self.input_size + own + self.output_size
        per_group = len(self.shared_producers) * self.input_size + shared
        return (
            self.unit_size * (num_units * per_unit + num_groups * per_group)
            + consumer * self.output_size
        )


def linear(base_model: nn.Module, path: str) -> nn.Linear:
    """The linear layer at `path` below the base model."""
    module = base_model.get_submodule(path)
    assert isinstance(module, nn.Linear)
    return module
