"""Blocks: sets of channels that can leave a transformer together, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["heads", "neurons"]
KINDS: tuple[Kind, ...] = ("heads", "neurons")


#: Tokens a sequence: one number, or one by the name of each mask where a model reads several.
SeqLength = float | Mapping[str, float]


def length_of(seq_length: SeqLength, mask: str) -> float:
    """Tokens a sequence where the entry `mask` of a batch says which are real."""
    return seq_length[mask] if isinstance(seq_length, Mapping) else seq_length


@dataclass(frozen=True)
class Producer:
    """A linear layer that makes channels of a block, and where in its output they are.

    Attributes
    ----------
    path : str
        Below the base model.
    parts : tuple of {"unit", "group"}
        What the layer makes, in order: ``unit_size`` rows for each unit (queries, neurons), or for
        each key/value head. ``("unit", "group", "group")`` is a fused query, key and value.
    interleaved : bool
        Whether the parts repeat key/value head by key/value head, rather than standing one after
        another.
    bias : bool
    of_positions : bool
        Whether it reads relative positions instead of tokens.
    size : int or tuple of int, optional
        Rows for each unit or key/value head, or these of each part. None: as many as the unit has
        channels, as they are all that it has where queries and keys are of the size of values.
    """

    path: str
    parts: tuple[Literal["unit", "group"], ...]
    interleaved: bool = False
    bias: bool = False
    of_positions: bool = False
    size: int | tuple[int, ...] | None = None

    def sizes(self, unit_size: int) -> tuple[int, ...]:
        """Rows for each unit or key/value head, by part."""
        if isinstance(self.size, tuple):
            return self.size
        return (unit_size if self.size is None else self.size,) * len(self.parts)


@dataclass(frozen=True)
class Block:
    """Channels made by some linear layers (producers) and read by exactly one (the consumer).

    A *unit* is what can leave: a neuron of a feed-forward network, or a query head of an attention
    layer, which is ``unit_size`` consecutive channels of the consumer's input. Where keys and
    values are shared (grouped-query attention), a key/value head leaves with its last query head.

    Attributes
    ----------
    name : str
        Path of the layer and the part, for instance ``"encoder.layer.0.heads"``.
    kind : {"heads", "neurons"}
    layer : int
    consumer : str
        Path, below the base model, of the linear layer that reads the channels.
    producers : tuple of Producer
        Queries before keys and values, gates before what they gate.
    num_units : int
    unit_size : int
    num_groups : int
        Number of key/value heads; equal to `num_units` where nothing is shared.
    input_size, output_size : int
        Width of what the producers read and of what the consumer writes.
    consumer_bias : bool
    attributes : mapping of str to mapping of str to str
        ``{module path: {attribute: "heads" | "groups" | "channels" | "heads_per_group" |
        "neurons"}}``: the counts that modules remember and that have to follow.
    part : str
        What it is in its layer: its kind, or a longer name where a layer has several of a kind.
        Parts of one name have one size where all layers are alike.
    expert_of : str
        The set of experts that it is one of, ``""`` for none. Their weights are one tensor, so
        they keep equally many neurons.
    usage : float
        Fraction of the tokens that reach it.
    adds_to_stream : bool
        Whether the residual stream gets the consumer's output as it is.
    stream_after : str or None
        Path of the module whose input is the stream with that output added; None: the layer's
        output is.
    multiple : int
        What its number of units is kept to multiples of, whatever the user asks for.
    sizes : frozenset of (int, int), optional
        Units and key/value heads that it may keep, where not any number will do.
    fixed : str
        Why no unit can leave; ``""`` where units can.
    removable : bool
        Whether all units can leave together.
    mask, key_mask : str
        Entries of a batch that say where the tokens are that the block computes with, and those
        that it attends to: others in cross-attention.
    calls : int
        How often a forward pass computes the block: more than once where layers share weights.
    position_macs : tuple of float
        Multiply-accumulates that relative positions add for each unit: once a sequence, and once a
        token.
    position_bias : {"own", "all heads"}, optional
        Where a bias that depends on position and head is added to the scores: whether the attention
        layer could have its own, or is given one for all heads of the dense model.
    """

    name: str
    kind: Kind
    layer: int
    consumer: str
    producers: tuple[Producer, ...]
    num_units: int
    unit_size: int
    num_groups: int
    input_size: int
    output_size: int
    consumer_bias: bool
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    part: str = ""
    expert_of: str = ""
    usage: float = 1.0
    adds_to_stream: bool = True
    stream_after: str | None = None
    multiple: int = 1
    sizes: frozenset[tuple[int, int]] | None = None
    fixed: str = ""
    removable: bool = True
    mask: str = "attention_mask"
    key_mask: str = "attention_mask"
    calls: int = 1
    position_macs: tuple[float, float] = (0.0, 0.0)
    position_bias: Literal["own", "all heads"] | None = None

    @property
    def set_name(self) -> str:
        """Name of the set of experts that it belongs to, or its own where it is none."""
        return self.expert_of or self.name

    @property
    def num_channels(self) -> int:
        """Width of the consumer's input."""
        return self.num_units * self.unit_size

    @property
    def query_key_size(self) -> int:
        """Dimensions in which a head's queries meet its keys."""
        sizes = (one.sizes(self.unit_size) for one in self.producers if one.size is not None)
        return next(sizes, (self.unit_size,))[0]

    def with_dims(self, query_key: int, value: int) -> Block:
        """The block with so many dimensions in each head; of families in which they can differ.

        There queries, keys and values have a linear layer each, in this order, or one for all.
        """
        *before, values = self.producers
        if len(values.parts) > 1:
            fused = replace(values, size=(query_key, query_key, value))
            return replace(self, producers=(fused,), unit_size=value)
        narrowed = (replace(one, size=query_key) for one in before)
        return replace(self, producers=(*narrowed, values), unit_size=value)

    @property
    def units_per_group(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_units // max(self.num_groups, 1)

    def remembered(self, num_units: int, num_groups: int) -> dict[str, dict[str, int]]:
        """What modules remember of so many units, by path and name (`attributes`)."""
        values = {
            "heads": num_units,
            "groups": num_groups,
            "channels": num_units * self.unit_size,
            "heads_per_group": num_units // max(num_groups, 1),
            "neurons": num_units,
        }
        return {
            path: {name: values[count] for name, count in names.items()}
            for path, names in self.attributes.items()
        }

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
        needed: Tensor = torch.unique(units // self.units_per_group)
        return needed

    def units_at(self, groups: Tensor, members: Tensor | None = None) -> Tensor:
        """Units of some key/value heads, or neurons, one after another.

        Parameters
        ----------
        groups : Tensor of shape (g,), int64
        members : Tensor of shape (k,), int64, optional
            Places among the query heads of each; default: all.

        Returns
        -------
        Tensor of shape (g * k,), int64
        """
        members = torch.arange(self.units_per_group) if members is None else members
        return (groups[:, None] * self.units_per_group + members).reshape(-1)

    def part_rows(self, producer: Producer) -> list[Tensor]:
        """Output rows of each part of a producer, by unit (or key/value head) and channel.

        Returns
        -------
        list of Tensor of shape (units or groups, size), int64
        """
        sizes = producer.sizes(self.unit_size)
        if producer.interleaved:
            size, *_ = sizes
            widths = [self.units_per_group if p == "unit" else 1 for p in producer.parts]
            count = self.num_groups * sum(widths) * size
            rows = torch.arange(count).reshape(self.num_groups, sum(widths), size)
            return [part.reshape(-1, size) for part in rows.split(widths, dim=1)]
        counts = [self.num_units if p == "unit" else self.num_groups for p in producer.parts]
        widths = [count * size for count, size in zip(counts, sizes, strict=True)]
        parts = torch.arange(sum(widths)).split(widths)
        return [rows.reshape(-1, size) for rows, size in zip(parts, sizes, strict=True)]

    def rows(self, producer: Producer, units: Tensor) -> Tensor:
        """Output rows of a producer that stay when `units` do, in the producer's own order.

        Parameters
        ----------
        producer : Producer
        units : Tensor of shape (k,), int64
            Ascending.

        Returns
        -------
        Tensor of shape (r,), int64
        """
        units = units.cpu()
        groups = self.groups(units)
        kept = [
            rows[units if part == "unit" else groups].reshape(-1)
            for part, rows in zip(producer.parts, self.part_rows(producer), strict=True)
        ]
        joined = torch.cat(kept)
        return joined.sort().values if producer.interleaved else joined

    @cached_property
    def _rows(self) -> dict[str, tuple[int, int, int]]:
        """Rows that producers have for a unit or group: all, those with a bias, those of tokens.

        A search for a budget asks for them at every size of every block, again and again.
        """
        counts = {
            part: [
                sum(
                    n
                    for p, n in zip(one.parts, one.sizes(self.unit_size), strict=True)
                    if p == part
                )
                for one in self.producers
            ]
            for part in ("unit", "group")
        }
        biased = [one.bias for one in self.producers]
        of_tokens = [not one.of_positions for one in self.producers]
        return {
            part: (sum(rows), sum(compress(rows, biased)), sum(compress(rows, of_tokens)))
            for part, rows in counts.items()
        }

    def macs(self, num_units: int, num_groups: int, seq_length: SeqLength) -> float:
        """Multiply-accumulates for one sequence of `seq_length` tokens.

        Kwon et al. 2022 (arXiv:2204.09656), appendix; with shared keys and values the two
        projections are counted once a key/value head and for the tokens attended to, and an expert
        for the tokens routed to it where all experts get equally many.
        """
        size, s = self.unit_size, length_of(seq_length, self.mask)
        per_unit = s * (self._rows["unit"][2] * self.input_size + size * self.output_size)
        per_group = 0.0
        if self.kind == "heads":
            keys = length_of(seq_length, self.key_mask)
            once, per_token = self.position_macs
            per_unit += s * keys * (self.query_key_size + size) + once + s * per_token
            per_group = keys * self._rows["group"][2] * self.input_size
        return self.calls * self.usage * (num_units * per_unit + num_groups * per_group)

    def parameters(self, num_units: int, num_groups: int) -> int:
        """Weights and biases of the block's linear layers."""
        own, own_biases, _ = self._rows["unit"]
        shared, shared_biases, _ = self._rows["group"]
        per_unit = own * self.input_size + own_biases + self.unit_size * self.output_size
        per_group = shared * self.input_size + shared_biases
        return num_units * per_unit + num_groups * per_group + self.consumer_bias * self.output_size
