"""What the sizes of a layer's blocks cost in time, measured where the model is computed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from stat_prune.families import transformer_layers
from stat_prune.measuring.latency import take_turns, undisturbed_clock
from stat_prune.model.blocks import Block
from stat_prune.model.running import Batch, evaluating, model_inputs
from stat_prune.surgery.cut import cut_copy

#: Sizes of a feed-forward network that are timed, evenly spaced beside one at the small end.
NEURON_STEPS = 12

#: Rounds over all sizes: so many, and more until so many seconds have been measured.
MIN_ROUNDS, MAX_ROUNDS, SECONDS = 7, 40, 10.0


@dataclass(frozen=True)
class LatencyTable:
    """Seconds that a layer takes by the size of one block, the other block at its least.

    Two blocks of a layer run one after the other, so that what one adds to the layer's least time
    does not depend on the other (ZipLM, Kurtic et al. 2023, sums such tables over a model).

    Attributes
    ----------
    heads : tuple of (int, int, float)
        Query heads, key/value heads and seconds.
    neurons : tuple of (int, float)
        Neurons, ascending, and seconds.
    """

    heads: tuple[tuple[int, int, float], ...]
    neurons: tuple[tuple[int, float], ...]

    def extra_seconds(self, kind: str, num_units: int, num_groups: int) -> float:
        """Seconds beyond those of the quickest size; between measured numbers of neurons, linear.

        Parameters
        ----------
        kind : {"heads", "neurons"}
        num_units, num_groups : int
        """
        if kind == "heads":
            by_size = {(units, groups): seconds for units, groups, seconds in self.heads}
            return by_size[num_units, num_groups] - min(by_size.values())
        sizes, seconds = zip(*self.neurons, strict=True)
        return float(np.interp(num_units, sizes, seconds) - min(seconds))

    def to_lists(self) -> dict[str, list[list[float]]]:
        """For JSON."""
        return {"heads": [list(r) for r in self.heads], "neurons": [list(r) for r in self.neurons]}

    @classmethod
    def from_lists(cls, lists: dict[str, Any]) -> LatencyTable:
        """The table that `to_lists` came from."""
        return cls(
            heads=tuple((int(u), int(g), float(s)) for u, g, s in lists["heads"]),
            neurons=tuple((int(u), float(s)) for u, s in lists["neurons"]),
        )


def head_sizes(block: Block, remove: bool = False) -> list[tuple[int, int]]:
    """Every number of key/value heads with every equal number of query heads for each.

    With `remove` and where the block allows it, none of either comes first.
    """
    if block.fixed:
        return [(block.num_units, block.num_groups)]
    none = [(0, 0)] if remove and block.removable else []
    return none + [
        (groups * members, groups)
        for members in range(1, block.units_per_group + 1)
        for groups in range(1, block.num_groups + 1)
    ]


def neuron_sizes(block: Block, round_to: int, remove: bool = False) -> list[int]:
    """A grid of multiples of `round_to`, from the least to the size that the block has.

    With `remove` and where the block allows it, no neurons come first.
    """
    if block.fixed:
        return [block.num_units]
    steps = [1 / (2 * NEURON_STEPS), *(i / NEURON_STEPS for i in range(1, NEURON_STEPS))]
    rounded = {round(step * block.num_units / round_to) * round_to for step in steps}
    least = min(round_to, block.num_units)
    inside = {size for size in rounded if least < size < block.num_units}
    none = {0} if remove and block.removable else set()
    return sorted({least, *inside, block.num_units, *none})


def measure_layer(
    model: PreTrainedModel,
    heads: Block,
    neurons: Block,
    batch: Batch,
    *,
    round_to: int,
    remove: bool = False,
) -> LatencyTable:
    """Time one layer at every size of its attention and of its feed-forward network.

    The layer runs alone, on what reaches it in the dense model. All sizes take turns; the table
    has their medians.

    Parameters
    ----------
    model : PreTrainedModel
    heads, neurons : Block
        Of the same layer.
    batch : mapping of str to Tensor
    round_to : int
        Multiples that numbers of neurons are kept to.
    remove : bool
        Whether no heads and no neurons are sizes too.
    """
    by_heads = head_sizes(heads, remove)
    by_neurons = neuron_sizes(neurons, round_to, remove)
    sizes = [(*size, by_neurons[0]) for size in by_heads]
    least = by_heads[0]
    sizes += [(*least, size) for size in by_neurons[1:]]
    args, kwargs = _layer_inputs(model, heads.layer, batch)
    runs = []
    for num_heads, num_groups, num_neurons in sizes:
        layer = _layer_of_size(
            model, [(heads, num_heads, num_groups), (neurons, num_neurons, num_neurons)]
        )
        runs.append(partial(layer, *args, **kwargs))
    device = next(model.parameters()).device
    with torch.no_grad():
        medians = _medians(take_turns(runs, device, undisturbed_clock(device)))
    seconds = dict(zip(sizes, medians, strict=True))
    return LatencyTable(
        heads=tuple((*size, seconds[*size, by_neurons[0]]) for size in by_heads),
        neurons=tuple((size, seconds[*least, size]) for size in by_neurons),
    )


def _layer_of_size(model: PreTrainedModel, sizes: Sequence[tuple[Block, int, int]]) -> nn.Module:
    return transformer_layers(cut_copy(model, sizes))[sizes[0][0].layer].eval()


def _layer_inputs(
    model: PreTrainedModel, index: int, batch: Batch
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a layer is called with in a forward pass of the model."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    handle = transformer_layers(model)[index].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with evaluating(model):
            model(**model_inputs(model, batch, next(model.parameters()).device))
    finally:
        handle.remove()
    return calls[0]


def _medians(turns: Iterator[tuple[float, ...]]) -> list[float]:
    rounds: list[tuple[float, ...]] = []
    spent = 0.0
    while len(rounds) < MIN_ROUNDS or (len(rounds) < MAX_ROUNDS and spent < SECONDS):
        rounds.append(next(turns))
        spent += sum(rounds[-1])
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]
