"""What the sizes of a layer's blocks cost in time, measured where the model is computed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from stat_prune.families import transformer_layers
from stat_prune.measuring.latency import take_turns, undisturbed_clock
from stat_prune.model.blocks import Block
from stat_prune.model.running import Batch, evaluating, model_inputs
from stat_prune.surgery.cut import cut_copy
from stat_prune.surgery.narrowing import narrowed_sizes

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
    dims : tuple of (int, int, float)
        Dimensions of queries and keys, of values, and seconds, of all heads: each number of the
        first with each of the second. Empty where none are to leave.
    """

    heads: tuple[tuple[int, int, float], ...]
    neurons: tuple[tuple[int, float], ...]
    dims: tuple[tuple[int, int, float], ...] = ()

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

    def seconds_saved(
        self, num_units: int, query_keys: Sequence[int], values: Sequence[int]
    ) -> NDArray[np.float64]:
        """Seconds that heads take less where they have fewer dimensions.

        Between measured sizes linear in each; below them as at the least. Of fewer heads as large a
        part as they are of all.

        Parameters
        ----------
        num_units : int
            Query heads that stay.
        query_keys, values : sequence of int

        Returns
        -------
        ndarray of shape (len(query_keys), len(values)), float64
        """
        known = {(query_key, value): seconds for query_key, value, seconds in self.dims}
        rows, columns = sorted({one[0] for one in known}), sorted({one[1] for one in known})
        whole = known[rows[-1], columns[-1]]
        saved = [[whole - known[row, column] for column in columns] for row in rows]
        by_value = np.array([np.interp(values, columns, one) for one in saved])
        both = np.array([np.interp(query_keys, rows, one) for one in by_value.T]).T
        return both * num_units / max(units for units, _, _ in self.heads)

    def to_lists(self) -> dict[str, list[list[float]]]:
        """For JSON."""
        lists = {"heads": self.heads, "neurons": self.neurons, "dims": self.dims}
        return {name: [list(row) for row in rows] for name, rows in lists.items() if rows}

    @classmethod
    def from_lists(cls, lists: dict[str, Any]) -> LatencyTable:
        """The table that `to_lists` came from."""
        return cls(
            heads=tuple((int(u), int(g), float(s)) for u, g, s in lists["heads"]),
            neurons=tuple((int(u), float(s)) for u, s in lists["neurons"]),
            dims=tuple((int(q), int(v), float(s)) for q, v, s in lists.get("dims", ())),
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


def dims_sizes(block: Block, multiples: tuple[int, int]) -> list[tuple[int, int]]:
    """A grid of numbers of dimensions, all last: quarters of each kind.

    Parameters
    ----------
    block : Block
        Of heads.
    multiples : (int, int)
        Of which numbers of query/key and of value dimensions are multiples.
    """
    grid = []
    for size, multiple in zip((block.query_key_size, block.unit_size), multiples, strict=True):
        steps = {round(part * size / 4 / multiple) * multiple for part in range(1, 4)}
        grid.append(sorted({*(step for step in steps if 0 < step < size), size}))
    return [(query_key, value) for query_key in grid[0] for value in grid[1]]


def measure_layer(
    model: PreTrainedModel,
    heads: Block,
    neurons: Block,
    batch: Batch,
    *,
    round_to: int,
    remove: bool = False,
    multiples: tuple[int, int] | None = None,
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
    multiples : (int, int), optional
        Time fewer dimensions in heads as well: of which numbers of query/key and of value
        dimensions are multiples.
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
    by_dims = [] if multiples is None else dims_sizes(heads, multiples)
    for query_key, value in by_dims:
        narrow = narrowed_sizes(
            model, [(neurons, by_neurons[0], by_neurons[0])], (heads, query_key, value)
        )
        runs.append(partial(_layer_of(narrow, heads), *args, **kwargs))
    device = next(model.parameters()).device
    with torch.no_grad():
        medians = _medians(take_turns(runs, device, undisturbed_clock(device)))
    seconds = dict(zip(sizes, medians[: len(sizes)], strict=True))
    return LatencyTable(
        dims=tuple(
            (*dims, median) for dims, median in zip(by_dims, medians[len(sizes) :], strict=True)
        ),
        heads=tuple((*size, seconds[*size, by_neurons[0]]) for size in by_heads),
        neurons=tuple((size, seconds[*least, size]) for size in by_neurons),
    )


def _layer_of_size(model: PreTrainedModel, sizes: Sequence[tuple[Block, int, int]]) -> nn.Module:
    return _layer_of(cut_copy(model, sizes), sizes[0][0])


def _layer_of(model: PreTrainedModel, block: Block) -> nn.Module:
    return transformer_layers(model)[block.layer].eval()


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
