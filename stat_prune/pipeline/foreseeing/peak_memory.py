"""What pruning in memory will take, known before it begins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.correction import folding_bytes
from stat_prune.choosing.criteria.candidates import decomposing_bytes
from stat_prune.choosing.factored_block import factoring_bytes, num_factored
from stat_prune.families import transformer_layers
from stat_prune.measuring.objectives import COMPARING_BYTES
from stat_prune.model.blocks import Block
from stat_prune.model.tensors.half_products import copied_bytes
from stat_prune.pipeline.budgeting.searching import num_remembered
from stat_prune.pipeline.foreseeing.search_cost import SearchCost, searches
from stat_prune.pipeline.run import Run, num_probe_samples, probe_length
from stat_prune.pipeline.solving_again.second_pass import (
    MOST_STATES,
    moves_consumers,
    states_of_token,
)
from stat_prune.settings.methods import Method
from stat_prune.settings.settings import Settings

#: Bytes of a float32 and of a float64.
SINGLE, DOUBLE = 4, 8


@dataclass(frozen=True)
class Reading:
    """What is read for calibration.

    Attributes
    ----------
    num_samples : int
        Sequences.
    length : int
        Tokens of the longest.
    mean_length : float
        Tokens, padding included.
    batch_tokens : int
        Tokens of the largest batch, padding included.
    num_probe_samples : int
        Sequences that each probe is measured on.
    probe_length : int
        Tokens of the longest of these.
    """

    num_samples: int
    length: int
    mean_length: float
    batch_tokens: int
    num_probe_samples: int
    probe_length: int

    @classmethod
    def of(cls, run: Run) -> Reading:
        """What a run reads; of its calibration set no more than the shapes matter."""
        calibration, count = run.calibration, max(len(run.blocks), 1)
        sizes = [batch[calibration.main_mask].shape for batch in calibration.batches]
        length = max(tokens for _, tokens in sizes)
        values = values_per_sequence(run.model, length)
        probes = num_probe_samples(calibration.num_samples, count, values)
        cut = probe_length(calibration.num_tokens, count, probes) if values > 1 else length
        return cls(
            num_samples=calibration.num_samples,
            length=length,
            mean_length=sum(map(math.prod, sizes)) / calibration.num_samples,
            batch_tokens=max(sequences * tokens for sequences, tokens in sizes),
            num_probe_samples=probes,
            probe_length=min(length, cut),
        )


def needs_in_memory(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    reading: Reading,
    recipe: Method,
    budget: Budget,
    settings: Settings,
) -> int:
    """Bytes that `stat_prune.prune` will take, for one budget.

    The model; then the statistics of all blocks, with the most that is done beside them; or, behind
    them, what is left of blocks with the copy that is cut or the states of a second pass.
    """
    layers, outer = weight_bytes(model)
    weights = sum(layers) + outer
    kept = kept_of(budget)
    consumers = sum(DOUBLE * b.num_channels * b.output_size for b in blocks)
    statistics = statistics_bytes(blocks) + consumers
    activations = activation_bytes(blocks, reading.batch_tokens, blocks[0].output_size)
    comparing = comparing_bytes(model, probe_tokens(reading)) if recipe.probes else 0
    copies = copying_bytes(model)
    solving = max(max(decomposing_bytes(b, recipe), folding_bytes(b, kept)) for b in blocks)
    most = max(activations + copies + comparing, solving, kept * consumers)
    if searches(recipe, budget.target):
        # Blocks are factored, folded consumers remembered, and a pruned copy is measured.
        searching = _searching(model, blocks, reading, settings) + kept * sum(layers)
        remembered = SINGLE * (num_factored(blocks, recipe) + num_remembered(blocks))
        at_a_time = max(activations + copies, factoring_bytes(blocks, recipe))
        most = max(most, at_a_time + remembered + searching)
    # The pruned model is a whole copy before it is cut.
    behind = kept * consumers + weights
    if settings.tries_second_pass:
        held = solving_again_bytes(blocks, reading, settings)
        behind = kept * consumers + max(behind, held + kept * sum(layers))
    if settings.head_dims:  # which are chosen last, by the same statistics
        behind += statistics
    return round(weights + max(statistics + most, behind))


def solving_again_bytes(blocks: Sequence[Block], reading: Reading, settings: Settings) -> int:
    """The hidden states that a second pass holds."""
    states = states_of_token(blocks) * reading.num_samples * reading.length
    return SINGLE * (states if settings.num_passes == 2 else min(states, MOST_STATES))


def search_cost_of(
    model: PreTrainedModel, reading: Reading, effort: str, *, second_pass: bool = False
) -> SearchCost:
    """What a search takes at most on what is read."""
    by_token = values_per_sequence(model, reading.length) > 1
    return SearchCost.of(
        reading.num_samples, by_token=by_token, effort=effort, second_pass=second_pass
    )


def _searching(
    model: PreTrainedModel, blocks: Sequence[Block], reading: Reading, settings: Settings
) -> int:
    """The outputs that a search keeps, and those of two models on a batch."""
    second_pass = settings.tries_second_pass and moves_consumers(blocks)
    length = reading.length
    cost = search_cost_of(model, reading, settings.effort, second_pass=second_pass)
    head = model.get_output_embeddings()
    outputs = 0 if head is None else len(head.weight)
    element = next(model.parameters()).element_size()
    batch = 2 * cost.batch_tokens(length, reading.batch_tokens) * outputs
    return element * (cost.remembered(model, length, outputs) + batch) + COMPARING_BYTES


def kept_of(budget: Budget) -> float:
    """The largest fraction that is kept of a block on average."""
    if budget.target.bounds_error:
        return 1.0
    return max(budget.fractions().values(), default=1.0)


def weight_bytes(model: PreTrainedModel) -> tuple[list[int], int]:
    """Bytes of each layer's parameters and buffers, and of the rest; tied ones count once."""
    layers = transformer_layers(model)
    inside = [num_bytes(layer) for layer in layers]
    return inside, num_bytes(model) - num_bytes(nn.ModuleList(layers))


def num_bytes(module: nn.Module) -> int:
    """Of parameters and of buffers that are saved with them; tied ones count once."""
    return sum(tensor.nbytes for tensor in _unique(module.state_dict(keep_vars=True).values()))


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def statistics_bytes(blocks: Sequence[Block]) -> int:
    """A float64 Gram matrix a block."""
    return sum(DOUBLE * block.num_channels**2 for block in blocks)


def values_per_sequence(model: PreTrainedModel, length: int) -> int:
    """About how many values of the output a probe has for a sequence, before there is an output."""
    of_sequences = ("ForSequenceClassification", "ForQuestionAnswering")
    return 1 if type(model).__name__.endswith(of_sequences) else length


def activation_bytes(blocks: Sequence[Block], tokens: int, width: int) -> int:
    """Of a batch in one layer."""
    widest = max(block.num_channels for block in blocks)
    return 4 * tokens * (4 * width + 3 * widest)


def copying_bytes(model: PreTrainedModel) -> int:
    """Float32 copies of a weight, where this CPU multiplies the model's dtype by way of them."""
    return copied_bytes(model.dtype, max(p.numel() for p in model.parameters()))


def probe_tokens(reading: Reading) -> int:
    """Of the largest batch of probes."""
    return min(reading.batch_tokens, reading.num_probe_samples * reading.probe_length)


def comparing_bytes(model: PreTrainedModel, tokens: int) -> int:
    """The outputs of two models on a batch."""
    return 2 * output_bytes(model, tokens) + COMPARING_BYTES


def output_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Those of a language model's head."""
    head = model.get_output_embeddings()
    return 0 if head is None else tokens * len(head.weight) * head.weight.element_size()
