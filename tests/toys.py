"""A block without a model: random activations, a random consumer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stat_prune.linalg import Moments
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.model.blocks import Block, Producer
from stat_prune.model.projections import Projection


def neuron_block(num_neurons: int, output_size: int, *, bias: bool) -> Block:
    return Block(
        name="layer.0.neurons",
        kind="neurons",
        layer=0,
        consumer="layer.0.output",
        producers=(Producer("layer.0.input", ("unit",), bias=True),),
        num_units=num_neurons,
        unit_size=1,
        num_groups=num_neurons,
        input_size=output_size,
        output_size=output_size,
        consumer_bias=bias,
    )


def head_block(num_heads: int, num_groups: int, head_size: int, output_size: int) -> Block:
    return Block(
        name="layer.0.heads",
        kind="heads",
        layer=0,
        consumer="layer.0.output",
        producers=(Producer("q", ("unit",)), Producer("k", ("group",)), Producer("v", ("group",))),
        num_units=num_heads,
        unit_size=head_size,
        num_groups=num_groups,
        input_size=output_size,
        output_size=output_size,
        consumer_bias=False,
    )


def random_statistics(
    block: Block, *, tokens: int = 400, bias: bool = False, seed: int = 0, absorb_mean: bool = True
) -> tuple[BlockStatistics, Tensor, nn.Linear]:
    """Statistics of correlated activations with a mean; the activations; the consumer."""
    generator = torch.Generator().manual_seed(seed)
    m = block.num_channels
    mixing = torch.randn(m, m, generator=generator, dtype=torch.float64)
    decay = torch.logspace(0, -3, m, dtype=torch.float64)
    activations = torch.randn(tokens, m, generator=generator, dtype=torch.float64) * decay
    activations = activations @ mixing + torch.randn(m, generator=generator, dtype=torch.float64)
    consumer = nn.Linear(m, block.output_size, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        consumer.weight.copy_(
            torch.randn(consumer.weight.shape, generator=generator, dtype=torch.float64)
        )
    moments = Moments(m).update(activations)
    return (
        BlockStatistics.of(
            block,
            moments,
            Projection(consumer, consumer.weight, consumer.bias, ()),
            absorb_mean=absorb_mean,
        ),
        activations,
        consumer,
    )
