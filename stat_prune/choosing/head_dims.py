"""Dimensions inside heads: what each number of them costs, and the weights that go with it.

A head's queries and keys meet only in their product, and its values only in what the output
projection reads: both products can be of lower rank than the head has dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property

import torch
from torch import Tensor, nn

from stat_prune.choosing.correction import fold
from stat_prune.choosing.rotary_pairs import Rotary, RotaryPairs
from stat_prune.linalg import LowRank, Moments, low_rank
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.blocks import Block
from stat_prune.model.modeling_stat_prune import score_scale
from stat_prune.model.projections import Projection, head_projections, projection
from stat_prune.surgery.narrowing import NarrowedHeads

#: Added to second moments, relative to the largest: directions in which float32 says nothing.
_JITTER = 1e-7


class HeadDims:
    """The heads of one layer with every number of dimensions.

    Parameters
    ----------
    base_model : nn.Module
    block : Block
        Of heads with linear layers for queries, keys and values, in this order, or one for all.
    states : Moments
        Of what these layers read; in cross-attention of what queries are made of.
    channels : Moments
        Of what the consumer reads.
    rotary : Rotary, optional
        How queries and keys are turned, where they are.
    length : int
        Tokens of a sequence; of no account where nothing is turned.
    keeps_scores : bool
        Whether queries and keys are to stay as they are, as where norms are over a head.
    key_states : Moments, optional
        Of what keys are made of, where that is something else: in cross-attention.
    """

    def __init__(
        self,
        base_model: nn.Module,
        block: Block,
        states: Moments,
        channels: Moments,
        *,
        rotary: Rotary | None = None,
        length: int = 1,
        keeps_scores: bool = False,
        key_states: Moments | None = None,
    ) -> None:
        self.block = block
        self._rotary, self._length = rotary, length
        #: What the numbers of query/key dimensions are multiples of.
        self.query_key_multiple = 1 if rotary is None else 2
        if keeps_scores:
            self.query_key_multiple = block.query_key_size
        self._keeps_scores = keeps_scores
        self._states, self._key_states = states, states if key_states is None else key_states
        self._query, self._key, self._value = head_projections(base_model, block)
        self._output = projection(base_model, block.consumer)
        ((path, _),) = block.attributes.items()
        self._scaling = float(score_scale(base_model.get_submodule(path)))
        self._statistics = BlockStatistics.of(block, channels, self._output)
        self._score_maps = cache(self._maps_of_scores)

    @cached_property
    def query_key_errors(self) -> Tensor:
        """Of each head, mean squared error of the scores for 0, 1, ... dimensions.

        Of what softmax reads: an error that all keys share is none. Token pairs are taken as
        independent, as in "A3: an Analytical Low-Rank Approximation Framework for Attention"
        (Wong et al., ICML 2026, arXiv:2505.12942).

        Returns
        -------
        Tensor of shape (num_units, query_key_size + 1), float64
        """
        size = self.block.query_key_size
        if self._keeps_scores:
            return self._statistics.gram.new_zeros(self.block.num_units, size + 1)
        if self._rotary is not None:
            pairs = torch.cat([one.errors for one in self._rotary_pairs])
            # A dimension without the other of its pair is none.
            errors = pairs.repeat_interleave(2, dim=1)[:, : size + 1]
            return (self._scaling * self._rotary.scaling**2) ** 2 * errors
        queries, keys = self._query_and_key_moments()
        energies = [float((q * k).sum()) for q, k in zip(queries, keys, strict=True)]
        curves = [
            one.error_curve.square() * energy
            for one, energy in zip(self._score_products, energies, strict=True)
        ]
        return self._scaling**2 * torch.stack(curves)

    @cached_property
    def value_errors(self) -> Tensor:
        """Of each head, squared error of the output for 0, 1, ... dimensions, by the block's.

        Before what heads make up for that read other values.

        Returns
        -------
        Tensor of shape (num_units, unit_size + 1), float64
        """
        size, sharing = self.block.unit_size, self.block.units_per_group
        errors = self._statistics.gram.new_zeros(self.block.num_units, size + 1)
        for start in range(0, self.block.num_units, sharing):
            members = self._value_factors[start : start + sharing]
            ((_, right), *_) = members
            left = torch.stack([one for one, _ in members])
            channels = slice(start * size, (start + sharing) * size)
            gram = self._statistics.gram[channels, channels].unflatten(0, (sharing, size))
            gram = gram.unflatten(2, (sharing, size)).transpose(1, 2)
            shares = ((right @ gram @ right.T) * (left.mT[:, None] @ left)).sum(1)
            # Of the directions from each number on, the products of all with all.
            products = shares.flip(1, 2).cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2)
            errors[start : start + sharing, :-1] = products.flip(1)
        return errors / max(self._statistics.output_energy, 1e-300)

    def narrowed(self, query_key: int, value: int, units: Tensor | None = None) -> NarrowedHeads:
        """The linear layers for so many dimensions; all of a kind leaves its layers as they are.

        Parameters
        ----------
        query_key, value : int
        units : Tensor of shape (k,), int64, optional
            Heads that stay, ascending; default: all.
        """
        block = self.block
        changed: list[tuple[Tensor, Tensor | None] | None] = [None, None, None]
        consumer, output_error, score_error = None, None, 0.0
        units = torch.arange(block.num_units) if units is None else units.cpu()
        groups = block.groups(units)
        pairs = None
        if self._rotary is not None and self._rotary.pairs is not None:
            pairs = self._rotary.pairs[groups]
        if query_key < block.query_key_size:
            score_error = self._score_error(query_key, units)
            of_queries, of_keys = self._score_maps(query_key)
            changed[0] = _mapped(self._query, of_queries, units)
            changed[1] = _mapped(self._key, of_keys, groups)
            if self._rotary is not None:
                kept = torch.stack([self._rotary_pairs[g].kept(query_key // 2) for g in groups])
                pairs = kept.cpu() if pairs is None else pairs.gather(1, kept.cpu())
        if value < block.unit_size:
            changed[2], consumer, output_error = self._narrow_values(value, units, groups)
        layers = self._layers(changed, units, groups)
        if consumer is not None:
            layers[block.consumer] = consumer
        stays = replace(block, num_units=len(units), num_groups=len(groups))
        return NarrowedHeads(
            stays,
            query_key,
            value,
            layers,
            pairs=None if pairs is None else pairs.tolist(),
            score_error=score_error,
            output_error=output_error,
        )

    def _score_error(self, size: int, units: Tensor) -> float:
        """Relative error of the scores of some heads."""
        none, some = self.query_key_errors[units][:, [0, size]].sum(0).clamp_min(0).tolist()
        error: float = (some / max(none, 1e-300)) ** 0.5
        return error

    def _layers(
        self,
        changed: Sequence[tuple[Tensor, Tensor | None] | None],
        units: Tensor,
        groups: Tensor,
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Those that change of the layers that make queries, keys and values, by path."""
        producers = self.block.producers
        if len(producers) > 1:
            pairs = zip(producers, changed, strict=True)
            return {producer.path: one for producer, one in pairs if one is not None}
        if not any(one is not None for one in changed):
            return {}
        (fused,) = producers
        wholes = zip((self._query, self._key, self._value), (units, groups, groups), strict=True)
        weights, biases = zip(
            *(
                _of_heads(layer, heads, size) if one is None else one
                for one, (layer, heads), size in zip(
                    changed, wholes, fused.sizes(self.block.unit_size), strict=True
                )
            ),
            strict=True,
        )
        weight = torch.cat([one.double() for one in weights])
        bias = torch.cat([one.double() for one in biases]) if fused.bias else None
        return {fused.path: (weight, bias)}

    def _maps_of_scores(self, size: int) -> tuple[list[Tensor], list[Tensor]]:
        """Queries F^T q and keys T k, where F T is nearest to the identity between them.

        Of those that are turned, some pairs, and the queries' turned and scaled.
        """
        if self._rotary is not None:
            return self._maps_of_pairs(size // 2)
        identity = torch.eye(self.block.query_key_size).to(self._statistics.gram)
        pairs = [one.factors(identity, size) for one in self._score_products]
        return [left.T for left, _, _ in pairs], [right for _, right, _ in pairs]

    def _maps_of_pairs(self, count: int) -> tuple[list[Tensor], list[Tensor]]:
        half = self.block.query_key_size // 2
        of_queries, of_keys = [], []
        for pairs in self._rotary_pairs:
            kept = pairs.kept(count)
            chosen = torch.eye(2 * half).to(self._statistics.gram)[torch.cat([kept, kept + half])]
            of_keys.append(chosen)
            for factors in pairs.turns(count):
                a, b = (one.diag() for one in factors.T)
                of_queries.append(torch.cat([torch.cat([a, -b], 1), torch.cat([b, a], 1)]) @ chosen)
        return of_queries, of_keys

    def _narrow_values(
        self, size: int, units: Tensor, groups: Tensor
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None], float]:
        """The best directions of each head's values, and all that can be said of the others.

        Of the layer that makes values, and of the consumer; and the error of its output.
        """
        channels = torch.arange(self.block.num_channels).reshape(-1, self.block.unit_size)
        folded = fold(self._turned, channels[units, :size].reshape(-1))
        bias = None if self._output.bias is None else self._output.bias.detach().double()
        if folded.bias is not None:
            bias = folded.bias if bias is None else bias + folded.bias
        shared = self._value_factors[:: self.block.units_per_group]
        directions = [right[:size] for _, right in shared]
        mapped = _mapped(self._value, directions, groups)
        return mapped, (folded.weight, bias), folded.output_error

    @cached_property
    def _turned(self) -> BlockStatistics:
        """Of the heads' directions, each a unit of its own, in place of their channels."""
        turn = torch.block_diag(*(right for _, right in self._value_factors))
        known, mean, count = self._statistics, self._statistics.mean, self.block.num_channels
        return replace(
            known,
            block=replace(self.block, num_units=count, num_groups=count, unit_size=1, producers=()),
            gram=turn @ known.gram @ turn.T,
            mean=None if mean is None else turn @ mean,
            weight=torch.cat([left for left, _ in self._value_factors], dim=1),
        )

    @cached_property
    def _score_products(self) -> list[LowRank]:
        """Of each head, the product of queries and keys by rank."""
        found = []
        for queries, keys in zip(*self._query_and_key_moments(), strict=True):
            root = torch.linalg.cholesky(_positive(queries)).mT
            found.append(low_rank(root, metric=_positive(keys), centered=False))
        return found

    @cached_property
    def _value_factors(self) -> list[tuple[Tensor, Tensor]]:
        """Of each head, what the output projection makes of directions of its values, and these.

        The best by rank before the next, of all heads together that read the same values.
        """
        factors = []
        grams, weights = self._head_grams(), self._head_weights()
        sharing = self.block.units_per_group
        for start in range(0, len(grams), sharing):
            gram = torch.stack(grams[start : start + sharing]).mean(0)
            members = weights[start : start + sharing]
            product = low_rank(torch.cat(members), metric=_positive(gram), centered=False)
            for weight in members:
                left, right, _ = product.factors(weight, self.block.unit_size)
                factors.append((left, right))
        return factors

    @cached_property
    def _rotary_pairs(self) -> list[RotaryPairs]:
        """Of each key/value head, the pairs of dimensions that queries and keys meet in."""
        assert self._rotary is not None
        covariance = self._states.scatter / max(self._states.count, 1)
        queries = self._second_moments(self._query, self.block.num_units)
        keys = _by_head(self._key.weight, self.block.num_groups)
        means = keys @ self._states.mean
        if self._key.bias is not None:
            means = means + _by_head(self._key.bias, self.block.num_groups)
        return [
            RotaryPairs(own, key @ covariance @ key.T, mean, frequencies, self._length)
            for own, key, mean, frequencies in zip(
                queries.split(self.block.units_per_group),
                keys,
                means,
                self._rotary.frequencies.to(keys),
                strict=True,
            )
        ]

    def _query_and_key_moments(self) -> tuple[list[Tensor], list[Tensor]]:
        """Second moments of each head's queries, and of its keys about their mean.

        What keys have in common, their bias too, adds the same to all scores of a query.
        """
        covariance = self._key_states.scatter / max(self._key_states.count, 1)
        keys = _by_head(self._key.weight, self.block.num_units)
        second = self._second_moments(self._query, self.block.num_units)
        return list(second), list(keys @ covariance @ keys.mT)

    def _second_moments(self, layer: Projection, num_heads: int) -> Tensor:
        """Of what a layer makes for each head; of shape (num_heads, size, size)."""
        covariance = self._states.scatter / max(self._states.count, 1)
        weight = _by_head(layer.weight, num_heads)
        means = weight @ self._states.mean
        if layer.bias is not None:
            means = means + _by_head(layer.bias, num_heads)
        return weight @ covariance @ weight.mT + means[:, :, None] * means[:, None, :]

    def _head_grams(self) -> list[Tensor]:
        size = self.block.unit_size
        gram = self._statistics.gram
        starts = range(0, len(gram), size)
        return [gram[start : start + size, start : start + size] for start in starts]

    def _head_weights(self) -> list[Tensor]:
        return list(self._statistics.weight.split(self.block.unit_size, dim=1))


def _positive(moments: Tensor) -> Tensor:
    """Second moments with every direction in them."""
    identity = torch.eye(len(moments)).to(moments)
    found = moments + max(_JITTER * float(moments.diagonal().max()), 1e-30) * identity
    values = torch.linalg.eigvalsh(found)
    smallest, largest = float(values[0]), float(values[-1])
    if smallest <= len(moments) * torch.finfo(moments.dtype).eps * largest:
        # Sums of products in float32 are as wrong as that where values have large means.
        found = found + (2 * abs(smallest) + _JITTER * largest) * identity
    return found


def _by_head(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows of a weight or a bias in float64, by head."""
    return tensor.detach().double().reshape(num_heads, -1, *tensor.shape[1:])


def _of_heads(layer: Projection, heads: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of some heads' parts of a layer, as they are."""
    weight, bias = (
        None if one is None else one.detach().unflatten(0, (-1, size))[heads].flatten(0, 1)
        for one in (layer.weight, layer.bias)
    )
    assert weight is not None
    return weight, bias


def _mapped(
    layer: Projection, maps: Sequence[Tensor], heads: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of some heads' parts of a layer, with a linear map behind each."""
    parts = _by_head(layer.weight, len(maps))
    weight = torch.cat([maps[head] @ parts[head] for head in heads.tolist()])
    if layer.bias is None:
        return weight, None
    biases = _by_head(layer.bias, len(maps))
    return weight, torch.cat([maps[head] @ biases[head] for head in heads.tolist()])
