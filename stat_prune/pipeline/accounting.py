"""From a finished run to its report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.plan import BlockPlan
from stat_prune.errors import LatencyWarning
from stat_prune.families import find_blocks
from stat_prune.machine.distributed import num_processes
from stat_prune.machine.process_memory import peak_memory
from stat_prune.measuring.timing import device_name
from stat_prune.model.blocks import Block, SeqLength
from stat_prune.model.dispatched import own_parameters
from stat_prune.pipeline.run import Run
from stat_prune.reporting.block_row import BlockRow, dims_kept
from stat_prune.reporting.report import PruningReport, Size, Speed
from stat_prune.reporting.search_report import DimensionsOfHeads
from stat_prune.settings.targets import MACs
from stat_prune.surgery.token_tables import bytes_of_ids

#: Relative distance of the measured speed-up from the one asked for that is worth a warning.
TOLERANCE = 0.05


def measure(model: PreTrainedModel, seq_length: SeqLength) -> Size:
    """What a model costs, pruned or not."""
    blocks = find_blocks(model)
    parameters = list(own_parameters(model))
    return Size(
        block_macs=sum(b.macs(b.num_units, b.num_groups, seq_length) for b in blocks),
        block_parameters=sum(b.parameters(b.num_units, b.num_groups) for b in blocks),
        parameters=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters) + bytes_of_ids(model),
    )


def measure_speed(run: Run, budget: Budget, pruned: PreTrainedModel) -> Speed | None:
    """Time the result beside the dense model, where the target speaks of time."""
    timed = budget.timed
    if timed is None:
        return None
    with run.stage("time pruned model"):
        found = timed.compare(pruned)
    asked = 1 / budget.target.fractions()["all"]
    if abs(found.speed_up / asked - 1) > TOLERANCE:
        warnings.warn(
            f"The speed-up asked for is {asked:.4g}, but {found.speed_up:.4g} was measured (half "
            f"of {found.rounds} rounds lie between {found.low:.4g} and {found.high:.4g}). Where "
            "that is noise, let the machine rest or time larger batches; where the model is so "
            "small that one head more or less matters, take the nearest.",
            LatencyWarning,
            stacklevel=2,
        )
    batch_size, seq_length = timed.batch["input_ids"].shape
    return Speed(
        asked=asked,
        **asdict(found),
        batch_size=batch_size,
        seq_length=seq_length,
        threads=torch.get_num_threads(),
        device=device_name(run.device),
    )


def report_of(
    run: Run,
    budget: Budget,
    pruned: Sequence[BlockRow],
    before: Size,
    after: Size,
    head_dims: DimensionsOfHeads | None = None,
    **known: Any,
) -> PruningReport:
    """The report of one pruned model.

    Parameters
    ----------
    run : Run
    budget : Budget
    pruned : sequence of BlockRow
        Of the blocks that could be pruned, but for what dimensions inside heads do.
    before, after : Size
    head_dims : DimensionsOfHeads or None
    **known
        Other fields of the report.
    """
    rows = [*pruned, *(_whole_row(block) for block in run.untouched)]
    rows = [_with_dims(row, head_dims) for row in rows]
    order = {block.name: place for place, block in enumerate(find_blocks(run.model))}
    return PruningReport(
        blocks=sorted(rows, key=lambda row: order[row.name]),
        before=before,
        after=after,
        seq_length=budget.seq_length,
        lengths=dict(budget.lengths) if len(run.masks) > 1 else None,
        predicted_distance=_predicted_distance(rows),
        seconds=dict(run.stopwatch.seconds),
        peak_memory=peak_memory(run.device),
        settings=_settings(run, budget),
        earlier=run.earlier,
        head_dims=head_dims,
        **known,
    )


def _predicted_distance(rows: Sequence[BlockRow]) -> float | None:
    """None where nothing was probed, or where an error of what was probed is not known."""
    found = [(row.sensitivity, row.output_error) for row in rows if row.sensitivity is not None]
    if not found or any(error is None for _, error in found):
        return None
    return sum(weight * error**2 for weight, error in found if error is not None)


def row_of(plan: BlockPlan) -> BlockRow:
    """What a report says of a block that was pruned."""
    block, units = plan.folded.block, plan.folded.units
    return BlockRow(
        name=block.name,
        kind=block.kind,
        layer=block.layer,
        kept=len(units),
        total=block.num_units,
        kept_groups=len(block.groups(units)),
        total_groups=block.num_groups,
        activation_error=plan.activation_error,
        output_error=plan.folded.output_error,
        sensitivity=plan.sensitivity,
        error_curve=plan.error_curve,
        **dims_kept(block, block),
    )


def _whole_row(block: Block) -> BlockRow:
    return BlockRow(
        name=block.name,
        kind=block.kind,
        layer=block.layer,
        kept=block.num_units,
        total=block.num_units,
        kept_groups=block.num_groups,
        total_groups=block.num_groups,
        activation_error=0.0,
        output_error=0.0,
        sensitivity=None,
        **dims_kept(block, block),
    )


def _with_dims(row: BlockRow, head_dims: DimensionsOfHeads | None) -> BlockRow:
    """What a report says of a block whose heads may have lost dimensions.

    Errors are those of the correction that values were given, which is that of heads that left,
    too. Queries and keys are given none, and no error of the output was measured.
    """
    if head_dims is None or row.name not in head_dims.sizes:
        return row
    assert row.query_key_dims is not None and row.value_dims is not None
    query_key, value = head_dims.sizes[row.name]
    kept_scores = query_key == row.query_key_dims[1]
    return replace(
        row,
        activation_error=None,
        output_error=head_dims.errors[row.name][1] if kept_scores else None,
        query_key_dims=[query_key, row.query_key_dims[1]],
        value_dims=[value, row.value_dims[1]],
    )


def _settings(run: Run, budget: Budget) -> dict[str, Any]:
    """Everything needed to repeat the run."""
    calibration = run.calibration
    return {
        "model": run.model.config._name_or_path or type(run.model).__name__,
        "target": repr(budget.target),
        **run.settings.to_dict(),
        "calibration_samples": calibration.num_samples,
        "calibration_tokens": calibration.num_tokens,
        "calibration_masked_tokens": calibration.num_masked,
        "calibration_fingerprint": calibration.fingerprint,
        "dtype": str(run.model.dtype),
        "device": str(run.device),
        "processes": num_processes(),
        "chosen": _chosen(run, budget),
    }


def _chosen(run: Run, budget: Budget) -> dict[str, Any]:
    """What went for settings that were left to the method, the model and the data."""
    settings, target, calibration = run.settings, budget.target, run.calibration
    found = {
        "objective": "hidden-states" if run.model.base_model is run.model else "logits",
        "budget": "the method's own" if settings.own_budget else settings.recipe.allocation,
        "passes": 2 if settings.tries_second_pass else 1,
        "max_seq_length": calibration.batches[0][calibration.main_mask].shape[1],
    }
    found = {name: value for name, value in found.items() if getattr(settings, name) is None}
    if len(run.masks) == 1 and isinstance(target, MACs) and target.seq_length is None:
        found["target"] = repr(replace(target, seq_length=budget.seq_length))
    held_out = calibration.held_out
    read = calibration.num_samples + (held_out.num_samples if held_out else 0)
    if read < settings.num_calibration_samples:
        found["num_calibration_samples"] = read
    return found
