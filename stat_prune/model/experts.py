"""Mixtures of experts: what the consumer of one expert reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection


def routed_rows(
    base_model: nn.Module, block: Block, args: Sequence[Tensor], mask: Tensor | None
) -> Tensor:
    """Neurons of an expert for the tokens routed to it, each times the weight of its routing.

    The weight multiplies what the expert adds to the residual stream, so that it multiplies errors
    too. The neurons are computed again: how an implementation of experts (a loop, one grouped
    product) passes them on is its own affair.

    Parameters
    ----------
    base_model : nn.Module
    block : Block
        Of an expert.
    args : sequence of Tensor
        What the module of all experts is called with: hidden states of shape (tokens, hidden),
        and indices and weights, of shape (tokens, experts per token), of the experts chosen.
    mask : Tensor of shape (batch, sequence), bool, or None
        Where tokens are real.

    Returns
    -------
    Tensor of shape (n, m)
    """
    hidden_states, chosen, weights = args[:3]
    consumer = projection(base_model, block.consumer)
    tokens, places = torch.where(torch.eq(chosen, consumer.expert or 0))
    if mask is not None:
        real = mask.reshape(-1)[tokens]
        tokens, places = tokens[real], places[real]
    read = hidden_states[tokens]
    made = torch.cat(
        [
            nn.functional.linear(read, projection(base_model, producer.path).weight)
            for producer in block.producers
        ],
        dim=-1,
    )
    gate, up = made.chunk(2, dim=-1)
    activation = consumer.module.act_fn
    assert isinstance(activation, nn.Module)
    gated: Tensor = activation(gate) * up
    return gated * weights[tokens, places, None]
