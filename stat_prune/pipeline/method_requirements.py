"""What a published method is defined for, checked before any work."""

from __future__ import annotations

from stat_prune.errors import ModelError, TargetError
from stat_prune.families import architecture_of
from stat_prune.model.dispatched import is_dispatched
from stat_prune.pipeline.run import Run
from stat_prune.settings.targets import Target, Tolerance


def single_fraction(target: Target, method: str) -> float:
    """The kept fraction of heads and neurons together.

    Raises
    ------
    TargetError
        For a `Tolerance` or fractions by kind.
    """
    if isinstance(target, Tolerance) or "all" not in target.fractions():
        raise TargetError(
            f"method={method!r} takes one fraction for heads and neurons, got {target!r}. Use "
            "method='stat' for tolerances and fractions by kind."
        )
    return target.fractions()["all"]


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


def check_encoder(run: Run, method: str) -> None:
    """Refuse decoders, other inputs than text, shared weights, and sublayers that begin in a norm.

    The methods make up for what has left before the norm in which a sublayer ends.

    Raises
    ------
    ModelError
    """
    if is_dispatched(run.model):
        raise ModelError(
            f"method={method!r} computes with gradients or with masked weights, which hooks of "
            f"accelerate (device_map) do not allow. Load {type(run.model).__name__} on one device, "
            "or use method='stat'."
        )
    shared = any(block.units_per_group > 1 or block.calls > 1 for block in run.blocks)
    norms_before = any(block.stream_after is None for block in run.blocks)
    reads_text = run.masks == ["attention_mask"]
    if architecture_of(run.model).causal or shared or norms_before or not reads_text:
        raise ModelError(
            f"method={method!r} is defined for encoders of text in which every layer has weights "
            "and every head keys and values of its own, and every sublayer ends in a norm; "
            f"{type(run.model).__name__} is none. Use method='stat'."
        )
