"""What a published method is defined for, checked before any work."""

from __future__ import annotations

import warnings

from stat_prune.errors import CalibrationWarning, ModelError, SettingsError, TargetError
from stat_prune.families import architecture_of, stacks_of
from stat_prune.model.dispatched import is_dispatched
from stat_prune.pipeline.probes import check_objective
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.solving_again.second_pass import HELD_OUT, can_solve_again
from stat_prune.settings.methods import Baseline
from stat_prune.settings.targets import Target


def check_method(run: Run, *, kept: bool) -> None:
    """Refuse what a method is not defined for, or what the model leaves it nothing to do for.

    `kept` says whether its work is to be kept.

    Raises
    ------
    ModelError, SettingsError
    """
    baseline = run.settings.baseline
    if baseline is not None:
        check_baseline(run, baseline)
        if run.settings.objective is not None and not run.settings.own_budget:
            check_objective(run)
        if kept and not baseline.resumes:
            raise SettingsError(
                f"method={baseline.name!r} cannot be taken up again; leave out work_dir."
            )
        return
    if run.settings.objective is not None:
        check_objective(run)
    if run.settings.passes == 2 and not can_solve_again(run.model, run.blocks):
        raise SettingsError(
            "passes=2 has nothing to solve again: no layer of this "
            f"{type(run.model).__name__} reads or writes the residual stream as it is, once a "
            "pass. Use passes=1."
        )
    if run.settings.num_passes == 2 and run.calibration.num_samples < HELD_OUT:
        warnings.warn(
            f"A second pass holds out one calibration sequence in {HELD_OUT}, and there are "
            f"{run.calibration.num_samples}: there is none. Use more examples.",
            CalibrationWarning,
            stacklevel=4,
        )


def single_fraction(target: Target, method: str) -> float:
    """The kept fraction of heads and neurons together.

    Raises
    ------
    TargetError
        For a `Tolerance` or fractions by kind.
    """
    if target.bounds_error or "all" not in target.fractions():
        raise TargetError(
            f"method={method!r} takes one fraction for heads and neurons, got {target!r}. Use "
            "method='stat' for tolerances and fractions by kind."
        )
    return target.fractions()["all"]


def check_baseline(run: Run, baseline: Baseline) -> None:
    """Refuse models that a published method does not say that it can prune.

    Raises
    ------
    ModelError
    """
    if not baseline.experts:
        check_no_experts(run, baseline.name)


def check_no_experts(run: Run, method: str) -> None:
    """Refuse mixtures of experts, whose experts are of one size.

    Raises
    ------
    ModelError
    """
    if any(block.expert_of for block in run.blocks):
        raise ModelError(
            f"method={method!r} gives every block a size of its own, but the experts of a layer in "
            f"{type(run.model).__name__} share one. Use method='stat'."
        )


def check_one_stack(run: Run, method: str) -> None:
    """Refuse models whose layers cannot be run one after another in a copy.

    Raises
    ------
    ModelError
        For models that are dispatched, have several stacks of layers, or layers that share weights.
    """
    if is_dispatched(run.model):
        raise _needs_one_device(run, method, "runs a copy of the model layer by layer")
    if len(stacks_of(run.model)) > 1 or any(block.calls > 1 for block in run.blocks):
        raise ModelError(
            f"method={method!r} goes from layer to layer, through one stack of layers with weights "
            f"of their own; {type(run.model).__name__} has another layout. Use method='stat'."
        )


def check_encoder(run: Run, method: str) -> None:
    """Refuse decoders, other inputs than text, shared weights, and sublayers that begin in a norm.

    The methods make up for what has left before the norm in which a sublayer ends.

    Raises
    ------
    ModelError
    """
    if is_dispatched(run.model):
        raise _needs_one_device(run, method, "computes with gradients or with masked weights")
    shared = any(block.units_per_group > 1 or block.calls > 1 for block in run.blocks)
    norms_before = any(block.stream_after is None for block in run.blocks)
    reads_text = run.masks == ["attention_mask"]
    if architecture_of(run.model).causal or shared or norms_before or not reads_text:
        raise ModelError(
            f"method={method!r} is defined for encoders of text in which every layer has weights "
            "and every head keys and values of its own, and every sublayer ends in a norm; "
            f"{type(run.model).__name__} is none. Use method='stat'."
        )


def _needs_one_device(run: Run, method: str, why: str) -> ModelError:
    return ModelError(
        f"method={method!r} {why}, which hooks of accelerate (device_map) do not allow. Load "
        f"{type(run.model).__name__} on one device, or use method='stat'."
    )
