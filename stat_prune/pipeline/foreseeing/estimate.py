"""What pruning will cost, from a model's config alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.layer_weights import empty_model
from stat_prune.checkpoints.loading import class_of
from stat_prune.checkpoints.pretrained import given_tokenizer
from stat_prune.choosing.budget.costs import Budget
from stat_prune.data.calibration import CalibrationSet
from stat_prune.errors import LoadError
from stat_prune.families import find_blocks
from stat_prune.linalg import Moments
from stat_prune.machine.clock import Stopwatch
from stat_prune.machine.process_memory import taken_memory
from stat_prune.machine.progress import progress_bar
from stat_prune.model.blocks import Block
from stat_prune.pipeline.accounting import measure
from stat_prune.pipeline.budgeting.budgets import check_budget, check_can_be_timed, resolve
from stat_prune.pipeline.budgeting.sharing import even_share, spared_by_factors
from stat_prune.pipeline.foreseeing.foreseen import Estimate
from stat_prune.pipeline.foreseeing.peak_by_layer import needs_of
from stat_prune.pipeline.foreseeing.peak_memory import (
    Reading,
    kept_of,
    needs_in_memory,
    search_cost_of,
    solving_again_bytes,
    weight_bytes,
)
from stat_prune.pipeline.foreseeing.rates import Rates, block_seconds, measure_rates
from stat_prune.pipeline.foreseeing.search_cost import searches
from stat_prune.pipeline.foreseeing.streaming_requirements import (
    obstacle,
    supported_method,
    whole_model_for,
)
from stat_prune.pipeline.foreseeing.timing_cost import timing_seconds
from stat_prune.pipeline.inside_heads.kept_dims import check_kept_dims, heads_of, spared_by_dims
from stat_prune.pipeline.method_requirements import check_baseline, single_fraction
from stat_prune.pipeline.run import Run, blocks_of, open_run
from stat_prune.pipeline.solving_again.second_pass import moves_consumers
from stat_prune.reporting.report import Size
from stat_prune.settings.arguments import check_path, integer
from stat_prune.settings.methods import Method
from stat_prune.settings.options import Arguments
from stat_prune.settings.settings import Settings, settings_of
from stat_prune.settings.targets import Latency, MACs, Target, checked_target
from stat_prune.surgery.token_tables import find_head, find_table

#: Forward passes over the calibration set that a second pass takes, as measured.
SECOND_PASS = 4.5


def estimate(
    model: str | os.PathLike[str] | PreTrainedConfig,
    *,
    target: Target,
    seq_length: int = 512,
    dataset: Any = None,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    **settings: Unpack[Arguments],
) -> Estimate:
    """Foresee memory, disk and time of pruning a model, without its weights.

    Memory is computed from shapes. Time is computed from shapes and what a few seconds of measuring
    tell of this machine; reading the weights is not in it. Of methods with stages of their own, of
    a finish, and of factors alone, the sizes are foreseen, but neither memory nor time.

    Parameters
    ----------
    model : path, str or PreTrainedConfig
        A folder with ``config.json``, a name on the Hub, or the config itself.
    target : MACs, Parameters, Bytes, Tolerance or Latency
        Where embeddings share the budget, the sizes are those of about equal shares; for a time
        those of a model in which it goes with MACs.
    seq_length : int
        Tokens of a calibration sequence, where `dataset` is not given.
    dataset, tokenizer
        As for `stat_prune.prune`: what is read is then as much, and as long, as it is.
    **settings
        As for `stat_prune.prune_checkpoint`, where they matter; ``effort`` as for
        `stat_prune.prune`, which alone searches.

    Returns
    -------
    Estimate

    Raises
    ------
    LoadError
        If there is no such config, or its class is unknown.
    StatPruneError
        As for `stat_prune.prune_checkpoint`, but for what can only be pruned in memory. Which
        models a published method is defined for is not checked.
    """
    chosen = settings_of(estimate, settings)
    timed = target if isinstance(target, Latency) else None
    if timed is not None:
        target = MACs(timed.fraction, seq_length=timed.seq_length)
    checked_target(target)
    why, recipe = _not_foreseen(chosen), None
    if not why:
        # Layer by layer starts are compared, whatever the effort in memory, and corrected once.
        in_layers = replace(chosen, effort="fast", passes=1, inplace=False)
        recipe = supported_method(in_layers, target)
    seq_length = integer("seq_length", seq_length)
    run = _run_of(_model_of(model), chosen, target, seq_length, dataset, tokenizer)
    if timed is not None:
        check_can_be_timed(run, timed, timed.seq_length or round(run.calibration.mean_length))
    (budget,) = resolve(run, [target])
    check_budget(run, budget)
    check_kept_dims(run, [budget])
    before = measure(run.model, budget.lengths)
    if not run.blocks and target.of_dimensions:
        return _of_dimensions(run, budget, before)
    if not run.blocks:
        return _estimate(run, budget, before, not_foreseen=_OF_FACTORS)
    ranks = _ranks(run, target)  # of what was asked for, not of an even share
    if target.is_joint:
        budget = replace(budget, share=even_share(run, budget))
    if recipe is None:
        if chosen.baseline is not None:
            check_baseline(run, chosen.baseline)
            if target.bounds_error:
                single_fraction(target, chosen.baseline.name)
        return _estimate(run, budget, before, ranks=ranks, not_foreseen=why)
    return _estimate(run, budget, before, ranks=ranks, **_taken(run, recipe, budget, timed))


def _taken(run: Run, recipe: Method, budget: Budget, timed: Latency | None) -> dict[str, Any]:
    """Time, memory and disk, as fields of an `Estimate`."""
    model, blocks, reading, target = run.model, run.blocks, Reading.of(run), budget.target
    before = taken_memory(run.device)
    whole = needs_in_memory(model, blocks, reading, recipe, budget, run.settings)
    if target.of_dimensions:
        whole += sum(map(Moments.num_bytes, _moments_of_dims(run)))
    needs = needs_of(model, blocks, reading, recipe, budget)
    whole_alone = whole_model_for(target) or run.settings.num_passes > 1 or timed
    return {
        "seconds": _seconds(run, recipe, reading, budget, timed),
        "memory": before + whole,
        "memory_by_layer": None if whole_alone or obstacle(model) else before + needs.memory,
        "disk": needs.disk,
    }


#: Of embeddings and heads alone.
_OF_FACTORS = "nothing but factors was asked for, and the correction for them"


def _not_foreseen(settings: Settings) -> str:
    """Why it is not known what pruning will take, where that does not go through these stages."""
    if settings.planner.own_stages:
        return f"method={settings.method!r} has stages of its own"
    if settings.finish is not None:
        return f"finish={settings.finish!r} goes on as long as it helps"
    more = {"remove_blocks": settings.removes_blocks, "head_dims": settings.head_dims}
    return next((f"{name}=True measures more whole models" for name in more if more[name]), "")


def _estimate(
    run: Run, budget: Budget, before: Size, *, ranks: dict[str, int] | None = None, **taken: Any
) -> Estimate:
    """Sizes, and what pruning will take where that is known."""
    return Estimate(
        model=type(run.model).__name__,
        dtype=str(run.model.dtype).removeprefix("torch."),
        before=before,
        after=_shrunk(before, run, budget),
        seq_length=budget.seq_length,
        num_samples=run.calibration.num_samples,
        ranks=_ranks(run, budget.target) if ranks is None else ranks,
        **taken,
    )


def _ranks(run: Run, target: Target) -> dict[str, int]:
    """The largest ranks within fractions of embeddings and head."""
    found = {}
    for name, find, fraction in (
        ("embeddings", find_table, target.of_embeddings),
        ("lm_head", find_head, target.of_head),
    ):
        rank = find(run.model).rank_for(fraction, run.settings.round_to) if fraction < 1 else None
        if rank is not None:
            found[name] = rank
    return found


def _model_of(model: str | os.PathLike[str] | PreTrainedConfig) -> PreTrainedModel:
    """A model without weights, by its config."""
    if isinstance(model, PreTrainedConfig):
        config = model
    else:
        check_path("model", model)
        try:
            config = AutoConfig.from_pretrained(model)
        except Exception as error:  # of every kind, as what is read is anyone's
            raise LoadError(
                f"{str(model)!r} is neither a folder with config.json nor the name of a model that "
                f"can be fetched from the Hub: {error}"
            ) from error
    empty = empty_model(config, class_of(config), config.dtype or torch.float32)
    empty.eval()
    return empty


def _run_of(
    model: PreTrainedModel,
    settings: Settings,
    target: Target,
    seq_length: int,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None,
) -> Run:
    """A run of a model without weights, on what is read of a dataset where one is given."""
    if dataset is None:
        return _foreseen_run(model, settings, target, seq_length)
    quiet = replace(settings, progress=False)
    with open_run(model, dataset, given_tokenizer(tokenizer), quiet, [target]) as run:
        return run  # what is read is known by now


def _foreseen_run(
    model: PreTrainedModel, settings: Settings, target: Target, seq_length: int
) -> Run:
    """A run of which only the shapes are known: as many sequences as are asked for, all as long."""
    blocks, untouched = blocks_of(model, settings, [target])
    count, most = settings.num_calibration_samples, settings.batch_size
    sizes = [min(most, count - start) for start in range(0, count, most)]
    masks = dict.fromkeys(block.mask for block in [*blocks, *untouched])
    one = torch.ones(1, 1, dtype=torch.int64)
    calibration = CalibrationSet(
        batches=[{mask: one.expand(size, seq_length) for mask in masks} for size in sizes],
        num_samples=count,
        num_tokens=count * seq_length,
        fingerprint="",
        batch_size=most,
        pad_token_id=0,
    )
    with progress_bar(shown=False) as bar:
        return Run(model, blocks, untouched, calibration, settings, None, Stopwatch(), bar)


def _of_dimensions(run: Run, budget: Budget, before: Size) -> Estimate:
    """Where dimensions inside heads alone leave: one pass, with moments at both ends of heads.

    And the correction, which is solved on the pruned model alone.
    """
    every, blocks = run.untouched, [one.block for one in heads_of(run) if not one.left_alone]
    run = replace(run, blocks=blocks, untouched=[])
    reading = Reading.of(run)
    rates = measure_rates(run.model.dtype, run.device, run.settings.first_precision)
    layers, outer = weight_bytes(run.model)
    most = sum(map(Moments.num_bytes, _moments_of_dims(run)))
    seconds = {"dimensions of heads": _seconds_of_dims(run, reading, budget.target, rates)}
    if run.settings.tries_second_pass:
        forward = _macs_of(run, reading.mean_length) * rates.forward
        seconds["second pass"] = SECOND_PASS * reading.num_samples * forward
        most = max(most, solving_again_bytes(every, reading, run.settings))
    # Probes are copies, of which one layer is narrowed.
    memory = taken_memory(run.device) + 2 * (sum(layers) + outer) + most
    return _estimate(run, budget, before, ranks={}, seconds=seconds, memory=memory)


def _seconds_of_dims(run: Run, reading: Reading, target: Target, rates: Rates) -> float:
    """One pass over the calibration set, and a probe of half of each kind in each layer."""
    widths = _moments_of_dims(run)
    collecting = sum(width**2 for width in widths) * reading.mean_length * rates.moments
    collecting += _macs_of(run, reading.mean_length) * rates.forward
    # Half of the layers, on average, are computed for a probe.
    passes = 1 + len(target.of_dimensions) * len(widths) / 4
    probing = passes * _macs_of(run, reading.probe_length) * rates.forward
    return reading.num_samples * collecting + reading.num_probe_samples * probing


def _macs_of(run: Run, tokens: float) -> float:
    """Of all blocks, for a sequence of so many tokens."""
    every = find_blocks(run.model)
    return sum(block.macs(block.num_units, block.num_groups, tokens) for block in every)


def _moments_of_dims(run: Run) -> list[int]:
    """Channels of what dimensions inside heads are chosen by: what heads read, and their output."""
    blocks = [one.block for one in heads_of(run) if not one.left_alone]
    return [width for block in blocks for width in (block.num_channels, block.input_size)]


def _shrunk(before: Size, run: Run, budget: Budget) -> Size:
    """What is left if MACs and parameters shrink alike; all of it for a `Tolerance`."""
    lengths, blocks = budget.lengths, [*run.blocks, *run.untouched]
    macs, parameters = 0.0, 0
    for members, fraction in [] if budget.target.bounds_error else budget.fractions_of(blocks):
        for block in members:
            macs += (1 - fraction) * block.macs(block.num_units, block.num_groups, lengths)
            parameters += round(
                (1 - fraction) * block.parameters(block.num_units, block.num_groups)
            )
    of_macs, of_parameters = spared_by_dims(run, budget)
    macs, parameters = macs + of_macs, parameters + of_parameters
    of_tables, bytes_of_tables = spared_by_factors(run, budget)
    return Size(
        block_macs=before.block_macs - macs,
        block_parameters=before.block_parameters - parameters,
        parameters=before.parameters - parameters - of_tables,
        bytes=before.bytes - parameters * before.bytes // before.parameters - bytes_of_tables,
    )


def _seconds(
    run: Run, recipe: Method, reading: Reading, budget: Budget, timed: Latency | None = None
) -> dict[str, float]:
    """By stage: operations are counted, and multiplied by what one of them takes here."""
    model, blocks, settings, device = run.model, run.blocks, run.settings, run.device
    target = budget.target
    rates = measure_rates(model.dtype, device, settings.first_precision)
    length, depth = reading.mean_length, 1 + max(block.layer for block in blocks)

    sequence = partial(_macs_of, run)
    grams = sum(block.usage * block.num_channels**2 for block in blocks)
    probing = 0.0
    if recipe.probes:
        probed = {block.set_name: block.layer for block in blocks}
        passes = 1 + sum(1 - layer / depth for layer in probed.values())
        head = (1 + len(probed)) * reading.probe_length * _head_weights(model)
        macs = passes * sequence(reading.probe_length) + head
        probing = reading.num_probe_samples * macs * rates.forward
    second_pass = settings.tries_second_pass and moves_consumers(blocks)
    most = search_cost_of(model, reading, settings.effort, second_pass=second_pass)
    decomposing = folding = trials = 0.0
    for alike in _by_shape(blocks):
        one = block_seconds(alike[0], recipe, (0.5, kept_of(budget)), device)
        half, final = one.fold
        decomposing += len(alike) * one.decompose
        probing += len(alike) * half if probing else 0.0
        folding += len(alike) * final
        trials += len(alike) * (one.factor + most.folds * one.trial)
    collecting = sequence(length) * rates.forward + grams * length * rates.moments
    seconds = {
        "collect": reading.num_samples * collecting,
        "decompose": decomposing,
        "probe": probing,
    }
    if searches(recipe, target):
        to_logits = length * _head_weights(model)
        forward = reading.num_samples * (sequence(length) + to_logits) * rates.forward
        seconds["search the budget"] = most.passes * forward + trials
    seconds["fold"] = folding
    if timed is not None:
        seconds["time"] = timing_seconds(run, timed, rates)
    if target.of_dimensions:
        seconds["dimensions of heads"] = _seconds_of_dims(run, reading, target, rates)
    if settings.tries_second_pass:
        again = sequence(length) * rates.forward
        seconds["second pass"] = SECOND_PASS * reading.num_samples * again
    return seconds


def _head_weights(model: PreTrainedModel) -> int:
    """Multiply-accumulates of a language model's head for a token; smaller heads cost nothing."""
    head = model.get_output_embeddings()
    return 0 if head is None else head.weight.numel()


def _by_shape(blocks: Sequence[Block]) -> list[list[Block]]:
    alike: dict[tuple[int, ...], list[Block]] = {}
    for block in blocks:
        shape = (block.num_units, block.unit_size, block.num_groups, block.output_size)
        alike.setdefault(shape, []).append(block)
    return list(alike.values())
