"""Which pairs of rotated dimensions say most of the scores of heads that share keys.

A rotary embedding turns each pair of dimensions by an angle that grows with the position, so that
no pair can be mixed with another: whole pairs leave, and each that stays may be scaled and turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from stat_prune.model.blocks import Block

#: Added to the diagonal of a Gram matrix, relative to its largest entry.
_JITTER = 1e-9


@dataclass(frozen=True)
class Rotary:
    """How queries and keys of one layer are turned.

    Attributes
    ----------
    frequencies : Tensor of shape (groups, f), float64
        Radians a position, of each pair of dimensions ``(i, i + f)`` of a key/value head.
    scaling : float
        What cosines and sines are multiplied with.
    pairs : Tensor of shape (groups, f), int64, or None
        Which of the dense model's pairs they are; None: all.
    """

    frequencies: Tensor
    scaling: float
    pairs: Tensor | None = None


def rotary_of(base_model: nn.Module, block: Block, path: str) -> Rotary:
    """Frequencies of the pairs of dimensions that a layer's queries and keys have.

    Parameters
    ----------
    base_model : nn.Module
    block : Block
        Of heads.
    path : str
        Of the module with the dense model's frequencies.
    """
    embedding: Any = base_model.get_submodule(path)
    frequencies = embedding.inv_freq.double().cpu().expand(block.num_groups, -1)
    attention = base_model.get_submodule(next(iter(block.attributes)))
    pairs = getattr(attention, "rotary_pairs", None)
    if pairs is not None:
        pairs = torch.tensor(pairs)
        frequencies = frequencies.gather(1, pairs)
    return Rotary(frequencies, float(embedding.attention_scaling), pairs)


class RotaryPairs:
    """Pairs of the heads that share keys, in the order in which they leave.

    The score of a query and a key that stands d positions before it is the sum over all pairs of
    ``qᵀR(-dθ)k``. Those of the pairs that stay, turned and scaled by the least squares, are to be
    near to it over all queries and keys of a sequence, but for what is common to all keys of a
    query, which softmax does not see. Tokens are taken as independent of each other and of where
    they stand, so that second moments say all.

    Parameters
    ----------
    queries : Tensor of shape (heads, 2 f, 2 f), float64
        Second moments of each head's queries before they are turned.
    keys : Tensor of shape (2 f, 2 f), float64
        Covariance of the keys that they share.
    mean : Tensor of shape (2 f,), float64
        Of these keys.
    frequencies : Tensor of shape (f,), float64
        Radians a position.
    length : int
        Tokens of a sequence.

    Attributes
    ----------
    errors : Tensor of shape (heads, f + 1), float64
        Of each head, mean squared error of the scores for 0, 1, ... pairs.
    """

    def __init__(
        self, queries: Tensor, keys: Tensor, mean: Tensor, frequencies: Tensor, length: int
    ) -> None:
        products, centred = _trigonometric_moments(frequencies, length)
        self._gram = _score_moments(queries, keys, products) + _score_moments(
            queries, mean[:, None] * mean, centred
        )
        self._num_pairs = len(frequencies)
        self._order, self.errors = self._eliminate()

    def kept(self, count: int) -> Tensor:
        """The pairs of which `count` stay, ascending; int64."""
        kept: Tensor = self._order[:count].sort().values
        return kept

    def turns(self, count: int) -> Tensor:
        """What the queries of each head are multiplied with, pair by pair that stays.

        Returns
        -------
        Tensor of shape (heads, count, 2), float64
            Factors a and b of a pair (x, y), which becomes (a x - b y, a y + b x).
        """
        _, solution = self._solve(self.kept(count))
        return solution.reshape(len(solution), 2, -1).mT

    @cached_property
    def _target(self) -> Tensor:
        """Products of what each pair can say, as it is and a quarter turned, with the scores."""
        return self._gram[:, :, : self._num_pairs].sum(2)

    def _solve(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of the Gram matrix of some pairs, and the least squares by them."""
        chosen = torch.cat([pairs, pairs + self._num_pairs])
        gram = self._gram[:, chosen[:, None], chosen]
        floor = (_JITTER * gram.diagonal(dim1=1, dim2=2).amax(1)).clamp_min(1e-30)
        gram = gram + floor[:, None, None] * torch.eye(len(chosen)).to(gram)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        return inverse, (inverse @ self._target[:, chosen, None]).squeeze(2)

    def _eliminate(self) -> tuple[Tensor, Tensor]:
        """Backwards, each time the pair without which the error grows least."""
        left = torch.arange(self._num_pairs, device=self._gram.device)
        errors, leaving = [self._gram.new_zeros(len(self._gram))], []
        while len(left):
            inverse, solution = self._solve(left)
            count = len(left)
            own = inverse.unflatten(1, (2, count)).unflatten(3, (2, count))
            own = own.diagonal(dim1=2, dim2=4).permute(0, 3, 1, 2)
            factors = solution.unflatten(1, (2, count)).mT[..., None]
            costs = (factors.mT @ torch.linalg.solve(own, factors)).flatten(1)
            gone = int(costs.sum(0).argmin())
            errors.append(errors[-1] + costs[:, gone].clamp_min(0))
            leaving.append(left[gone])
            left = torch.cat([left[:gone], left[gone + 1 :]])
        return torch.stack(leaving).flip(0), torch.stack(errors, 1).flip(1)


def _trigonometric_moments(frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Second moments of the cosines and sines of all distances, and about their mean by query.

    Of a query at position m, the distances are 0, ..., m; queries count alike.

    Returns
    -------
    tuple of two Tensors of shape (2 f, 2 f), float64
        Cosines before sines.
    """
    distances = torch.arange(length).to(frequencies)
    angles = distances[:, None] * frequencies
    turned = torch.cat([angles.cos(), angles.sin()], dim=1)
    counts = distances + 1
    often = (1 / counts).flip(0).cumsum(0).flip(0) / length
    products = turned.T @ (often[:, None] * turned)
    means = turned.cumsum(0) / counts[:, None]
    return products, products - means.T @ means / length


def _score_moments(queries: Tensor, keys: Tensor, trigonometric: Tensor) -> Tensor:
    """Of each head, second moments of what the pairs add to the scores.

    Of a pair these are ``qᵀR(-dθ)k`` and, the query being a quarter turned, ``qᵀJᵀR(-dθ)k``: with
    ``x = qᵀk`` and ``y = qᵀJk``, ``cos x - sin y`` and ``-cos y - sin x``.

    Returns
    -------
    Tensor of shape (heads, 2 f, 2 f), float64
        All pairs as they are before all pairs a quarter turned.
    """
    half = len(keys) // 2

    def quarter(matrix: Tensor) -> Tensor:
        """J behind rows."""
        return torch.cat([-matrix[half:], matrix[:half]])

    def by_pair(moments: Tensor) -> Tensor:
        """Sums over the dimensions of a pair."""
        products: Tensor = queries * moments
        return products.reshape(-1, 2, half, 2, half).sum((1, 3))

    xx, yx = by_pair(keys), by_pair(quarter(keys))
    xy, yy = yx.mT, by_pair(quarter(quarter(keys).T).T)
    cc, cs, ss = (
        trigonometric[:half, :half],
        trigonometric[:half, half:],
        trigonometric[half:, half:],
    )
    sc = cs.T
    plain = cc * xx - cs * xy - sc * yx + ss * yy
    mixed = -cc * xy - cs * xx + sc * yy + ss * yx
    turned = cc * yy + cs * yx + sc * xy + ss * xx
    return torch.cat([torch.cat([plain, mixed], 2), torch.cat([mixed.mT, turned], 2)], 1)
