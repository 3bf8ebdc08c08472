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
from stat_prune.batching import masks_in, num_sequences, token_mask
from stat_prune.collectors import Batch, answering, evaluating, model_inputs
from stat_prune.correction import FoldedConsumer
from stat_prune.dispatched import input_device, loaded
from stat_prune.projections import Projection

#: Squared distance of a pruned model's output from the dense one's: ``(dense, pruned, batch)``
#: to a tensor of one value a position that counts.
Objective = Callable[[Any, Any, Batch], Tensor]

#: Logits that are compared at a time, to bound the memory for float64 copies.
_PIECE = 2**21


def positions_per_sequence(model: PreTrainedModel, batch: Batch, objective: Objective) -> float:
    """How many values an objective has for a sequence: one, or one a token."""
    device = input_device(model)
    with evaluating(model):
        return positions_of(model(**model_inputs(model, batch, device)), batch, objective)


def positions_of(output: Any, batch: Batch, objective: Objective) -> float:
    """How many values an objective has for a sequence of a batch, by the model's output on it."""
    return objective(output, output, batch).numel() / num_sequences(batch)


def distance(
    model: PreTrainedModel,
    pruned: PreTrainedModel,
    batches: Iterable[Batch],
    objective: Objective,
) -> float:
    """Mean distance of a pruned model's output from the dense one's."""
    device = input_device(model)
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
    if not probes:
        return []
    objective = objective or output_distance
    layers = transformer_layers(model)
    device = input_device(model)
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
                        consumer = stack.enter_context(
                            loaded(model.base_model, folded.block.consumer)
                        )
                        stack.enter_context(replaced(consumer, folded))
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
    - No head: squared error of the final hidden state of every token that is not padding (of the
      decoder, where there is one; of every patch of an image), relative to the dense state's
      squared norm.
    - Two towers: the same of both embeddings, added up.

    Returns
    -------
    Tensor of shape (positions,), floating point
    """
    if "start_logits" in dense:
        mask = _mask_of(dense["start_logits"], batch)
        hidden = torch.zeros_like(dense["start_logits"]).bool() if mask is None else ~mask
        start, end = (
            _divergence(
                dense[name].masked_fill(hidden, -1e9), pruned[name].masked_fill(hidden, -1e9)
            )
            for name in ("start_logits", "end_logits")
        )
        return start + end
    if "logits" not in dense:
        if "image_embeds" in dense and "text_embeds" in dense:
            names = ("image_embeds", "text_embeds")
            return sum((_relative(dense[name], pruned[name]) for name in names), torch.zeros(()))
        return _of_tokens(_relative(dense[0], pruned[0]), batch)
    before, after = dense["logits"], pruned["logits"]
    if before.shape[-1] == 1:
        distance = (after.float() - before.float()).square().squeeze(-1)
    else:
        distance = _divergence(before, after)
    return _of_tokens(distance, batch)


def _relative(dense: Tensor, pruned: Tensor) -> Tensor:
    """Squared error of vectors along the last dimension, relative to their squared norm."""
    before, after = dense.float(), pruned.float()
    return (after - before).square().sum(-1) / before.square().sum(-1).clamp_min(1e-30)


def _of_tokens(distance: Tensor, batch: Batch) -> Tensor:
    """Values of real tokens; all, where there is one value a sequence."""
    mask = _mask_of(distance, batch)
    return distance if mask is None else distance[mask]


def _mask_of(values: Tensor, batch: Batch) -> Tensor | None:
    """What says which of some outputs are of real tokens; the decoder's before the encoder's."""
    for name in reversed(masks_in(batch)):
        if batch[name].shape == values.shape:
            return token_mask(batch, name).to(values.device)
    return None


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
def replaced(consumer: Projection, folded: FoldedConsumer) -> Iterator[None]:
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
