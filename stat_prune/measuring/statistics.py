"""What selection and correction know of a block: second moments and the consumer's weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stat_prune.linalg import Moments
from stat_prune.linalg.solving.in_place import cholesky
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import loaded
from stat_prune.model.projections import Projection

#: Of the weight that are multiplied at once: the product would be as large again.
_ROWS = 512

#: A hundred times the rounding of float32 products. Of trained models, blocks come down to 2e-5.
DEPENDENCE = 1e-5


@dataclass(frozen=True)
class BlockStatistics:
    """Everything measured of one block, in float64.

    Attributes
    ----------
    block : Block
    gram : Tensor of shape (m, m), float64
        Sum over tokens of the outer products of the consumer's input; of its deviation from the
        mean where `mean` is given.
    mean : Tensor of shape (m,), float64, or None
        Mean input of a consumer that has a bias to absorb it; else None.
    weight : Tensor of shape (d, m), float64
        The consumer's weight.
    activation_energy, output_energy : float
        Squared Frobenius norms of the input, ``||A||^2``, and of what the consumer makes of it,
        ``||A W^T||^2``, neither centred: the denominators of relative errors.
    num_tokens : int
    attention : mapping of str to Tensor of shape (num_units,), float64, or None
        By name, what `stat_prune.attention` measured of each head; None where no criterion asks.
    expendable : bool
        Whether whoever looks at `gram` next may overwrite it.
    """

    block: Block
    gram: Tensor
    mean: Tensor | None
    weight: Tensor
    activation_energy: float
    output_energy: float
    num_tokens: int
    attention: Mapping[str, Tensor] | None = None
    expendable: bool = False

    @classmethod
    def of(
        cls,
        block: Block,
        moments: Moments,
        consumer: Projection,
        *,
        absorb_mean: bool = True,
        overwrite: bool = False,
    ) -> BlockStatistics:
        """Statistics for decisions about `block`.

        Parameters
        ----------
        block : Block
        moments : Moments
            Of the consumer's input.
        consumer : Projection
        absorb_mean : bool
            Decompose the centred moments and leave the mean to the bias, if there is one.
        overwrite : bool
            Take over the memory of `moments`, which are of no use afterwards.
        """
        weight = consumer.weight.detach().double()
        centred = absorb_mean and consumer.bias is not None
        if centred:
            gram = moments.scatter
        else:
            gram = moments.pop_gram() if overwrite else moments.gram
        mean_energy = moments.count * float(moments.mean.square().sum()) if centred else 0.0
        mean_output = weight @ moments.mean if centred else weight.new_zeros(1)
        return cls(
            block=block,
            gram=gram,
            mean=moments.mean if centred else None,
            weight=weight,
            activation_energy=float(gram.trace()) + mean_energy,
            output_energy=quadratic(gram, weight)
            + moments.count * float(mean_output.square().sum()),
            num_tokens=moments.count,
        )

    def has_dependence(self, *, overwrite: bool = False) -> bool:
        """Whether some channel is nearly a combination of others, too nearly for float32 products.

        The squared share of a channel's norm that those before it leave is a pivot of the Cholesky
        factorization of the correlations. Products in float32 make an error of about 1e-7 in it.
        With `overwrite`, `gram` is of no use afterwards.
        """
        norms = self.gram.diagonal().sqrt()
        alive = norms > 0
        scale = torch.where(alive, 1 / norms, 0)
        correlations = self.gram if overwrite else self.gram.clone()
        correlations.mul_(scale[:, None]).mul_(scale)
        correlations.diagonal()[~alive] = 1
        factor, found = cholesky(correlations)
        return not found or float(factor.diagonal().min()) ** 2 < DEPENDENCE


def statistics_of(
    base_model: nn.Module,
    blocks: Sequence[Block],
    moments: dict[str, Moments],
    *,
    absorb_mean: bool = True,
) -> list[BlockStatistics]:
    """`BlockStatistics` of each block, in order."""
    found = []
    for block in blocks:
        with loaded(base_model, block.consumer) as consumer:
            found.append(
                BlockStatistics.of(block, moments[block.name], consumer, absorb_mean=absorb_mean)
            )
    return found


def quadratic(gram: Tensor, weight: Tensor) -> float:
    """``trace(W G W^T)``: squared Frobenius norm of ``A W^T`` from the Gram matrix of ``A``."""
    return sum(float((rows @ gram).mul_(rows).sum()) for rows in weight.split(_ROWS))


def complement(kept: Tensor, size: int) -> Tensor:
    """Indices in ``range(size)`` that are not in `kept`, ascending; int64."""
    mask = torch.ones(size, dtype=torch.bool, device=kept.device)
    mask[kept] = False
    return mask.nonzero().squeeze(1)
