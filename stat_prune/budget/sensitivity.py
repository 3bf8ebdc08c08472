"""What each block's pruning does to the model's output, measured without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.architectures import transformer_layers
from stat_prune.calibration import token_mask
from stat_prune.collectors import Batch, answering, evaluating, model_inputs
from stat_prune.correction import FoldedConsumer
from stat_prune.projections import Projection, projection

#: Squared distance of a pruned model's output from the dense one's: ``(dense, pruned, batch)``
#: to a tensor of one value a position that counts.
Objective = Callable[[Any, Any, Batch], Tensor]

#: Logits that are compared at a time, to bound the memory for float64 copies.
_PIECE = 2**24


def positions_per_sequence(model: PreTrainedModel, batch: Batch, objective: Objective) -> float:
    """How many values an objective has for a sequence: one, or one a token."""
    device = next(model.parameters()).device
    with evaluating(model):
        output = model(**model_inputs(model, batch, device))
        return objective(output, output, batch).numel() / len(batch["input_ids"])


def distance(
    model: PreTrainedModel,
    pruned: PreTrainedModel,
    batches: Iterable[Batch],
    objective: Objective,
) -> float:
    """Mean distance of a pruned model's output from the dense one's."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with evaluating(model), evaluating(pruned):
        for batch in batches:
            dense = model(**model_inputs(model, batch, device))
            values = objective(dense, pruned(**model_inputs(pruned, batch, device)), batch)
            total += float(values.double().sum())
            count += values.numel()
    return total / max(count, 1)


def probe(
    model: PreTrainedModel,
    probes: Sequence[FoldedConsumer],
    batches: Sequence[Batch],
    *,
    objective: Objective | None = None,
    advance: Callable[[str], None] = lambda _name: None,
) -> list[float]:
    """Effect on the output of each block's pruning alone, the rest of the model dense.

    A set of experts counts as one block: those of them that have a probe are pruned together.

    A probe changes only a consumer: dropped channels get weight zero and the kept ones the
    corrected weight, which gives exactly the output of the pruned block. Layers before the block
    are not computed again.

    Parameters
    ----------
    model : PreTrainedModel
        Unchanged when this returns.
    probes : sequence of FoldedConsumer
        One a block.
    batches : sequence of mappings of str to Tensor
        Model inputs to measure on.
    objective : callable, optional
        Default: see `output_distance`.
    advance : callable
        Called with the block's name after each probe of each batch.

    Returns
    -------
    list of float
        Mean distance of the output, by probe; the same for all experts of a set.
    """
    objective = objective or output_distance
    layers = transformer_layers(model)
    device = next(model.parameters()).device
    together: dict[str, list[FoldedConsumer]] = {}
    for folded in probes:
        together.setdefault(folded.block.set_name, []).append(folded)
    sums, count = dict.fromkeys(together, 0.0), 0
    with evaluating(model):
        for batch in batches:
            inputs = model_inputs(model, batch, device)
            with recorded(layers) as layer_outputs:
                dense = model(**inputs)
            for name, members in together.items():
                known = {
                    layer: partial(layer_outputs.get, layer)
                    for layer in list(layers)[: members[0].block.layer]
                }
                with answering(known), ExitStack() as stack:
                    for folded in members:
                        consumer = projection(model.base_model, folded.block.consumer)
                        stack.enter_context(_replaced(consumer, folded))
                    distances = objective(dense, model(**inputs), batch)
                sums[name] += float(distances.double().sum())
                for folded in members:
                    advance(folded.block.name)
            count += distances.numel()
    return [sums[one.block.set_name] / max(count, 1) for one in probes]


def output_distance(dense: Any, pruned: Any, batch: Batch) -> Tensor:
    """The default objective of each head class.

    - Classes (sequence or token classification, question answering, language models):
      Kullback-Leibler divergence from the dense distribution, in nats; at every token that is
      not padding where there is one distribution a token.
    - Regression (one output): squared difference.
    - No head: squared error of the final hidden state of every token that is not padding,
      relative to the dense state's squared norm.

    Returns
    -------
    Tensor of shape (positions,), floating point
    """
    mask = token_mask(batch)
    if "start_logits" in dense:
        hidden = ~mask.to(dense["start_logits"].device)
        start, end = (
            _divergence(
                dense[name].masked_fill(hidden, -1e9), pruned[name].masked_fill(hidden, -1e9)
            )
            for name in ("start_logits", "end_logits")
        )
        return start + end
    if "logits" not in dense:
        before, after = dense[0].float(), pruned[0].float()
        error = (after - before).square().sum(-1) / before.square().sum(-1).clamp_min(1e-30)
        return error[mask.to(error.device)]
    before, after = dense["logits"], pruned["logits"]
    if before.shape[-1] == 1:
        distance = (after.float() - before.float()).square().squeeze(-1)
    else:
        distance = _divergence(before, after)
    return distance[mask.to(distance.device)] if distance.shape == mask.shape else distance


def _divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """Kullback-Leibler divergence along the last dimension, in float64.

    Nearly equal distributions differ by less than float32 can sum. Large vocabularies go through
    in pieces.
    """
    shape, size = dense.shape[:-1], dense.shape[-1]
    rows = max(_PIECE // size, 1)
    pieces = zip(
        dense.reshape(-1, size).split(rows), pruned.reshape(-1, size).split(rows), strict=True
    )
    distances = []
    for before, after in pieces:
        expected = before.double().log_softmax(-1)
        found = after.double().log_softmax(-1)
        terms = nn.functional.kl_div(found, expected, log_target=True, reduction="none")
        distances.append(terms.sum(-1))
    return torch.cat(distances).reshape(shape).clamp_min(0)


@contextmanager
def recorded(layers: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """Every layer's output during one forward, by layer."""
    outputs: dict[nn.Module, Any] = {}

    def hook(module: nn.Module, _args: Any, output: Any) -> None:
        outputs[module] = output

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced(consumer: Projection, folded: FoldedConsumer) -> Iterator[None]:
    """The consumer computes with the probe's weight and bias."""
    dense = [(consumer.weight, consumer.weight.clone())]
    consumer.weight.copy_(folded.scattered_weight())
    if consumer.bias is not None and folded.bias is not None:
        dense.append((consumer.bias, consumer.bias.clone()))
        consumer.bias.copy_(consumer.bias.double() + folded.bias)
    try:
        yield
    finally:
        for tensor, before in dense:
            tensor.copy_(before)
