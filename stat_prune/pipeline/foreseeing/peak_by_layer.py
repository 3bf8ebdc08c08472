"""What pruning layer by layer will take of memory and disk, known before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.correction import folding_bytes
from stat_prune.choosing.criteria.candidates import decomposing_bytes
from stat_prune.families import token_embeddings
from stat_prune.linalg import Moments
from stat_prune.linalg.low_rank import BLOCK_ROWS
from stat_prune.model.blocks import Block
from stat_prune.pipeline.budgeting.best_share import NUM_CORRECTED
from stat_prune.pipeline.budgeting.sharing import FRACTIONS, NUM_SHARES, tables_to_factor
from stat_prune.pipeline.budgeting.starts import MAX_STARTS
from stat_prune.pipeline.foreseeing.peak_memory import (
    DOUBLE,
    SINGLE,
    Reading,
    activation_bytes,
    comparing_bytes,
    copying_bytes,
    kept_of,
    output_bytes,
    probe_tokens,
    search_cost_of,
    statistics_bytes,
    weight_bytes,
)
from stat_prune.pipeline.foreseeing.search_cost import SearchCost, passing_states, searches
from stat_prune.pipeline.solving_again.second_pass import HELD_OUT
from stat_prune.settings.methods import Method
from stat_prune.surgery.token_tables import Table

#: Square matrices of a table's width that its decomposition has at once: moments of all rows and
#: of those that stay, roots of the metric, directions, and what an eigensolver works in.
_OF_WIDTH = 9


@dataclass(frozen=True)
class Needs:
    """Bytes.

    Attributes
    ----------
    memory : int
        Peak of the process beyond what it has taken before.
    disk : int
        Of the working folder, with the pruned layers.
    """

    memory: int
    disk: int


def needs_of(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    reading: Reading,
    recipe: Method,
    budget: Budget,
) -> Needs:
    """Predict what pruning layer by layer will take; the model may be without weights.

    The peak is the most that is done at a time: the first layer runs behind the embeddings;
    outputs are compared, which takes the head; statistics of a layer are collected, which takes its
    weights; a block is decomposed, or its correction solved, which takes the weights of the layer's
    consumers, the Gram matrix, and float64 copies of such a weight or parts of it; a layer is
    computed beside a cut copy, or cut; or all that is in no layer is factored and written.
    """
    layers, outer = weight_bytes(model)
    tables = tables_to_factor(model, budget)
    if not blocks:
        return _needs_of_factors(model, tables, reading, budget)
    compared = search_cost_of(model, reading, "fast") if searches(recipe, budget.target) else None
    stages = _outside_layers(model, tables, reading, recipe, budget, compared)
    for members in _by_layer(blocks):
        weights = layers[members[0].layer]
        stages += _in_one_layer(model, members, weights, reading, recipe, budget, compared)
    passing = _passing(model, blocks, tables, reading, recipe, budget, compared)
    return Needs(memory=max(stages), disk=passing + statistics_bytes(blocks) + sum(layers) + outer)


def _needs_of_factors(
    model: PreTrainedModel, tables: Sequence[Table], reading: Reading, budget: Budget
) -> Needs:
    """Where no block is pruned."""
    layers, outer = weight_bytes(model)
    memory, passing = max(outer + _factoring(tables, budget), *layers), 0
    if any(one.of_head for one in tables):  # the calibration set goes through the layers
        copies, outputs = copying_bytes(model), output_bytes(model, reading.batch_tokens)
        memory = max(memory, max(layers) + copies, outer + copies + outputs)
        element = next(model.parameters()).element_size()
        passing = 2 * tables[-1].width * element * reading.num_samples * reading.length
    return Needs(memory=memory, disk=passing + sum(layers) + outer)


def _outside_layers(
    model: PreTrainedModel,
    tables: Sequence[Table],
    reading: Reading,
    recipe: Method,
    budget: Budget,
    compared: SearchCost | None,
) -> list[int]:
    """What each step takes that stands before or behind the layers.

    `compared` is what comparing whole models takes, where they are.
    """
    layers, outer = weight_bytes(model)
    factoring, copies = outer + _factoring(tables, budget), copying_bytes(model)
    steps = [factoring]
    embeddings, head = _apart(model)
    if recipe.probes:
        steps += [
            outer - head + layers[0] + copies,
            outer - embeddings + copies + comparing_bytes(model, probe_tokens(reading)),
        ]
    if compared is not None:
        tokens = compared.batch_tokens(reading.length, reading.batch_tokens)
        behind = factoring if tables else outer - embeddings
        steps.append(behind + copies + comparing_bytes(model, tokens))
    if budget.target.is_joint:
        # Of shares the nearest are judged in larger batches, behind the factors that were made last
        # and those before, and a factored head puts exact rows into a copy of its output.
        judged = min(reading.num_samples // HELD_OUT * reading.length, reading.batch_tokens)
        factors = sum(_factors(one, budget) for one in tables)
        outputs = output_bytes(model, judged)
        steps.append(factoring + factors + copies + outputs + comparing_bytes(model, judged))
    if any(one.of_head for one in tables):
        steps.append(outer - embeddings + copies + output_bytes(model, reading.batch_tokens))
    return steps


def _in_one_layer(
    model: PreTrainedModel,
    members: Sequence[Block],
    weights: int,
    reading: Reading,
    recipe: Method,
    budget: Budget,
    compared: SearchCost | None,
) -> list[int]:
    """What each step in a layer of so many bytes takes, of which `members` are pruned."""
    element = next(model.parameters()).element_size()
    copies, kept, width = copying_bytes(model), _most_kept(budget), members[0].output_size
    consumers = element * sum(b.num_channels * b.output_size for b in members)
    folded = [round(DOUBLE * kept * b.num_channels * b.output_size) for b in members]
    steps = [
        weights + copies + _collecting(members, reading.batch_tokens, width),
        *(
            consumers + statistics_bytes([b]) + decomposing_bytes(b, recipe, expendable=True)
            for b in members
        ),
        *(
            consumers
            + sum(folded[:i])
            + statistics_bytes([b])
            + folding_bytes(b, kept, expendable=True)
            for i, b in enumerate(members)
        ),
        round((1 + kept) * weights) + sum(folded),
    ]
    if compared is not None:
        tokens = compared.batch_tokens(reading.length, reading.batch_tokens)
        cut = round((1 + kept) * weights) + sum(folded) * SINGLE // DOUBLE
        steps.append(cut + copies + activation_bytes(members, tokens, width))
    return steps


def _passing(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    tables: Sequence[Table],
    reading: Reading,
    recipe: Method,
    budget: Budget,
    compared: SearchCost | None,
) -> int:
    """Bytes of what goes from layer to layer: a layer's states are there until the next's are."""
    element, width = next(model.parameters()).element_size(), blocks[0].output_size
    streams = 1 + len({block.set_name for block in blocks}) if recipe.probes else 0
    probes = streams * reading.num_probe_samples * reading.probe_length
    passing = 2 * width * element * (reading.num_samples * reading.length + probes)
    if compared is None:
        return passing
    sizes = [[b.num_channels * b.output_size for b in one] for one in _by_layer(blocks)]
    largest = max(map(sum, sizes))
    walks = [(compared.sequences[0], MAX_STARTS, min(len(tables), 1))]
    if budget.target.is_joint:
        walks.append((compared.sequences[0], NUM_SHARES, NUM_SHARES))
        walks.append((reading.num_samples // HELD_OUT, NUM_CORRECTED, NUM_CORRECTED))
    for sequences, variants, factored in walks:
        folded = SINGLE * variants * _most_kept(budget) * largest  # for one layer
        states = passing_states(variants, factored) * sequences * reading.length
        passing = max(passing, round(folded + width * element * states))
    return passing


def _most_kept(budget: Budget) -> float:
    """As `kept_of`; of shares that are compared some leave blocks whole."""
    return 1.0 if budget.target.is_joint else kept_of(budget)


def _factoring(tables: Sequence[Table], budget: Budget) -> int:
    """What factoring takes: the factors, and matrices of the width in float64."""
    return sum(
        _factors(one, budget) + DOUBLE * (_OF_WIDTH * one.width**2 + BLOCK_ROWS * one.width)
        for one in tables
    )


def _factors(table: Table, budget: Budget) -> int:
    """Bytes of those of a table; of shares that are compared, of the second: the first is whole."""
    kept = budget.of_head if table.of_head else budget.of_embeddings
    if budget.target.is_joint:
        kept = FRACTIONS[1]
    return round(kept * table.parameters) * table.itemsize


def _apart(model: PreTrainedModel) -> tuple[int, int]:
    """Bytes of the token embeddings and of a language model's head; 0 where one tensor is both."""
    modules = (token_embeddings(model), model.get_output_embeddings())
    first, second = (None if one is None else one.weight for one in modules)
    if first is second:
        return 0, 0
    return 0 if first is None else first.nbytes, 0 if second is None else second.nbytes


def _by_layer(blocks: Sequence[Block]) -> list[list[Block]]:
    layers: dict[int, list[Block]] = {}
    for block in blocks:
        layers.setdefault(block.layer, []).append(block)
    return list(layers.values())


def _collecting(blocks: Sequence[Block], tokens: int, width: int) -> int:
    """Moments with their buffers, and the activations of a batch."""
    moments = sum(Moments.num_bytes(b.num_channels) for b in blocks)
    return moments + activation_bytes(blocks, tokens, width)
