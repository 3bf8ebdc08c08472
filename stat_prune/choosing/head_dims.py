"""Dimensions inside heads: what each number of them costs, and the weights that go with it.

A head's queries and keys meet only in their product, and its values only in what the output
projection reads: both products can be of lower rank than the head has dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property

import torch
from torch import Tensor, nn

from stat_prune.choosing.correction import fold
from stat_prune.linalg import LowRank, Moments, low_rank
from stat_prune.measuring.statistics import BlockStatistics, quadratic
from stat_prune.model.blocks import Block
from stat_prune.model.projections import Projection, projection
from stat_prune.surgery.narrowing import NarrowedHeads

#: Added to second moments, relative to the largest: directions in which float32 says nothing.
_JITTER = 1e-7


class HeadDims:
    """The heads of one layer with every number of dimensions.

    Parameters
    ----------
    base_model : nn.Module
    block : Block
        Of heads with linear layers for queries, keys and values, in this order.
    states : Moments
        Of what these layers read.
    channels : Moments
        Of what the consumer reads.
    """

    def __init__(
        self, base_model: nn.Module, block: Block, states: Moments, channels: Moments
    ) -> None:
        self.block = block
        self._states = states
        self._query, self._key, self._value = (
            projection(base_model, one.path) for one in block.producers
        )
        self._output = projection(base_model, block.consumer)
        ((path, _),) = block.attributes.items()
        self._scaling = float(base_model.get_submodule(path).scaling)  # type: ignore[arg-type]
        self._statistics = BlockStatistics.of(block, channels, self._output)
        self.query_key = cache(self._narrow_scores)
        self.value = cache(self._narrow_values)

    @cached_property
    def query_key_errors(self) -> Tensor:
        """Mean squared error of the scores for 0, 1, ... dimensions, summed over the heads.

        Of what softmax reads: an error that all keys share is none. Token pairs are taken as
        independent, as in "A3: an Analytical Low-Rank Approximation Framework for Attention"
        (Wong et al., ICML 2026, arXiv:2505.12942).

        Returns
        -------
        Tensor of shape (query_key_size + 1,), float64
        """
        products = self._score_products
        moments = zip(*self._query_and_key_moments(), strict=True)
        energies = [float((queries * keys).sum()) for queries, keys in moments]
        return self._scaling**2 * _summed(products, energies)

    @cached_property
    def value_errors(self) -> Tensor:
        """Squared error of the block's output for 0, 1, ... dimensions, relative to its energy.

        Summed over the heads, before what the other heads make up for.

        Returns
        -------
        Tensor of shape (unit_size + 1,), float64
        """
        energies = [
            quadratic(gram, weight)
            for gram, weight in zip(self._head_grams(), self._head_weights(), strict=True)
        ]
        errors = _summed(self._value_products, energies)
        return errors / max(self._statistics.output_energy, 1e-300)

    def narrowed(self, query_key: int, value: int) -> NarrowedHeads:
        """The linear layers for so many dimensions; all of a kind leaves its layers as they are."""
        layers: dict[str, tuple[Tensor, Tensor | None]] = {}
        if query_key < self.block.query_key_size:
            layers |= self.query_key(query_key)
        if value < self.block.unit_size:
            layers |= self.value(value)
        return NarrowedHeads(self.block, query_key, value, layers)

    def _narrow_scores(self, size: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Queries F^T q and keys T k, where F T is nearest to the identity between them."""
        identity = torch.eye(self.block.query_key_size).to(self._statistics.gram)
        pairs = [one.factors(identity, size) for one in self._score_products]
        queries, keys, _ = self.block.producers
        return {
            queries.path: _mapped(self._query, [left.T for left, _, _ in pairs]),
            keys.path: _mapped(self._key, [right for _, right, _ in pairs]),
        }

    def _narrow_values(self, size: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The best directions of each head's values, and all that can be said of the others."""
        width = self.block.unit_size
        factors = [
            product.factors(weight, width)
            for product, weight in zip(self._value_products, self._head_weights(), strict=True)
        ]
        turn = torch.block_diag(*(right for _, right, _ in factors))
        known, mean = self._statistics, self._statistics.mean
        channels = self.block.num_channels
        turned = replace(
            known,
            block=replace(
                self.block, num_units=channels, num_groups=channels, unit_size=1, producers=()
            ),
            gram=turn @ known.gram @ turn.T,
            mean=None if mean is None else turn @ mean,
            weight=torch.cat([left for left, _, _ in factors], dim=1),
        )
        units = torch.arange(channels).reshape(-1, width)[:, :size].reshape(-1)
        folded = fold(turned, units)
        bias = None if self._output.bias is None else self._output.bias.detach().double()
        if folded.bias is not None:
            bias = folded.bias if bias is None else bias + folded.bias
        values = self.block.producers[-1]
        return {
            values.path: _mapped(self._value, [right[:size] for _, right, _ in factors]),
            self.block.consumer: (folded.weight, bias),
        }

    @cached_property
    def _score_products(self) -> list[LowRank]:
        """Of each head, the product of queries and keys by rank."""
        found = []
        for queries, keys in zip(*self._query_and_key_moments(), strict=True):
            root = torch.linalg.cholesky(_positive(queries)).mT
            found.append(low_rank(root, metric=_positive(keys), centered=False))
        return found

    @cached_property
    def _value_products(self) -> list[LowRank]:
        """Of each head, the product of the output projection and the values by rank."""
        return [
            low_rank(weight, metric=_positive(gram), centered=False)
            for gram, weight in zip(self._head_grams(), self._head_weights(), strict=True)
        ]

    def _query_and_key_moments(self) -> tuple[list[Tensor], list[Tensor]]:
        """Second moments of each head's queries, and of its keys about their mean.

        What keys have in common, their bias too, adds the same to all scores of a query.
        """
        covariance = self._states.scatter / max(self._states.count, 1)
        queries, keys = (
            one.weight.detach().double().unflatten(0, (self.block.num_units, -1))
            for one in (self._query, self._key)
        )
        means = queries @ self._states.mean
        if self._query.bias is not None:
            means = means + self._query.bias.detach().double().reshape(means.shape)
        second = queries @ covariance @ queries.mT + means[:, :, None] * means[:, None, :]
        return list(second), list(keys @ covariance @ keys.mT)

    def _head_grams(self) -> list[Tensor]:
        size = self.block.unit_size
        gram = self._statistics.gram
        starts = range(0, len(gram), size)
        return [gram[start : start + size, start : start + size] for start in starts]

    def _head_weights(self) -> list[Tensor]:
        return list(self._statistics.weight.split(self.block.unit_size, dim=1))


def _positive(moments: Tensor) -> Tensor:
    """Second moments with every direction in them."""
    floor = _JITTER * float(moments.diagonal().max())
    return moments + max(floor, 1e-30) * torch.eye(len(moments)).to(moments)


def _summed(products: list[LowRank], energies: list[float]) -> Tensor:
    """Squared errors of all heads by rank."""
    curves = [one.error_curve.square() * e for one, e in zip(products, energies, strict=True)]
    return torch.stack(curves).sum(0)


def _mapped(layer: Projection, maps: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with a linear map behind each head's part of a layer."""
    joint = torch.block_diag(*maps)
    bias = None if layer.bias is None else joint @ layer.bias.detach().double()
    return joint @ layer.weight.detach().double(), bias
