"""What each block's pruning does to the model's output, measured without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.data.batching import masks_in, num_sequences
from stat_prune.families import transformer_layers
from stat_prune.measuring.objectives import distances, output_distance, reader_of
from stat_prune.model.dispatched import input_device, loaded
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch, Objective, evaluating, model_inputs, stubbed


def positions_per_sequence(model: PreTrainedModel, batch: Batch, objective: Objective) -> float:
    """How many values an objective has for a sequence: one, or one a token."""
    device = input_device(model)
    reader = reader_of(model, objective)
    with evaluating(model):
        return positions_of(reader(**model_inputs(reader, batch, device)), batch, objective)


def positions_of(output: Any, batch: Batch, objective: Objective) -> float:
    """How many values an objective has for a sequence of a batch, by the model's output on it."""
    return distances(objective, output, output, batch).numel() / num_sequences(batch)


def distance(
    model: PreTrainedModel,
    pruned: PreTrainedModel,
    batches: Iterable[Batch],
    objective: Objective,
) -> float:
    """Mean distance of a pruned model's output from the dense one's."""
    outputs = outputs_of((model, pruned), batches, objective)
    (found,) = distances_by_sequence(outputs, objective, ("",)).values()
    return float(found.mean())


def outputs_of(
    models: Sequence[PreTrainedModel], batches: Iterable[Batch], objective: Objective
) -> Iterator[tuple[Batch, list[Any]]]:
    """Each batch, and what an objective reads of models on it."""
    readers = [reader_of(model, objective) for model in models]
    device = input_device(models[0])
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        for batch in batches:
            yield batch, [reader(**model_inputs(reader, batch, device)) for reader in readers]


def distances_by_sequence(
    outputs: Iterable[tuple[Batch, Sequence[Any]]], objective: Objective, names: Sequence[str]
) -> dict[str, Tensor]:
    """What each sequence has of the distances of some pruned models from the dense one.

    Parameters
    ----------
    outputs : iterable of (mapping of str to Tensor, sequence of object)
        A batch, and the output of the dense model on it before those of the others.
    objective : callable
    names : sequence of str
        Of the others.

    Returns
    -------
    dict of str to Tensor of shape (n,), float64
        Their means are the distances.
    """
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    count = 0
    for batch, (dense, *found) in outputs:
        for of_model, output in zip(sums.values(), found, strict=True):
            values = distances(objective, dense, output, batch)
            of_model.append(sums_by_sequence(values, batch))
        count += values.numel()
    joined = {name: torch.cat(of_model) for name, of_model in sums.items()}
    return {name: one * (len(one) / max(count, 1)) for name, one in joined.items()}


def sums_by_sequence(values: Tensor, batch: Batch) -> Tensor:
    """Sums of an objective's values over each sequence of a batch.

    Where the values are neither one a sequence nor one a real token, all count as much.
    """
    values, count = values.double().cpu(), num_sequences(batch)
    if values.numel() == count:
        return values.reshape(-1)
    for mask in reversed(masks_in(batch)):
        lengths = batch[mask].reshape(count, -1).sum(1)
        if int(lengths.sum()) == values.numel():
            return torch.stack([part.sum() for part in values.split(lengths.tolist())])
    return values.sum().expand(count) / count


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
        Default: `output_distance`.
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
    reader = reader_of(model, objective)
    layers = transformer_layers(model)
    device = input_device(model)
    together: dict[str, list[FoldedConsumer]] = {}
    for folded in probes:
        together.setdefault(folded.block.set_name, []).append(folded)
    sums, count = dict.fromkeys(together, 0.0), 0
    with evaluating(model):
        for batch in batches:
            inputs = model_inputs(reader, batch, device)
            with recorded(layers) as layer_outputs:
                dense = reader(**inputs)
            for name, members in together.items():
                known = {
                    layer: partial(layer_outputs.get, layer)
                    for layer in list(layers)[: members[0].block.layer]
                }
                with stubbed(known), ExitStack() as stack:
                    for folded in members:
                        stack.enter_context(loaded(model.base_model, folded.block.consumer))
                    stack.enter_context(replaced(model.base_model, members))
                    values = distances(objective, dense, reader(**inputs), batch)
                sums[name] += float(values.double().sum())
                for folded in members:
                    advance(folded.block.name)
            count += values.numel()
    return [sums[one.block.set_name] / max(count, 1) for one in probes]


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
def replaced(base_model: nn.Module, probes: Iterable[FoldedConsumer]) -> Iterator[None]:
    """The consumers compute with the weights and biases of their probes.

    These are in memory of their own: that of the dense weights may be shared with a model which is
    used meanwhile (`stat_prune.model.one_run`).
    """
    dense: dict[Tensor, Tensor] = {}
    try:
        for folded in probes:
            for held in projection(base_model, folded.block.consumer).held_in:
                if held not in dense:  # experts have one in common
                    dense[held] = held.data
                    held.data = held.data.clone()
            consumer = projection(base_model, folded.block.consumer)
            consumer.weight.copy_(folded.scattered_weight())
            if consumer.bias is not None and folded.bias is not None:
                consumer.bias.copy_(consumer.bias.double() + folded.bias)
        yield
    finally:
        for held, values in dense.items():
            held.data = values
