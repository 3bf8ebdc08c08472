"""What can be pruned layer by layer."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from stat_prune.checkpoints.layer_weights import Checkpoint
from stat_prune.errors import ModelError, SaveError, SettingsError, TargetError
from stat_prune.families import find_blocks, stacks_of
from stat_prune.machine.distributed import num_processes
from stat_prune.pipeline.foreseeing.peak_by_layer import Needs
from stat_prune.settings.methods import Method
from stat_prune.settings.settings import Settings
from stat_prune.settings.targets import Latency, Target


def supported_method(settings: Settings, target: Target) -> Method:
    """The recipe, where one layer at a time is enough for it.

    Raises
    ------
    SettingsError, TargetError
        Where it is not.
    """
    if settings.planner.own_stages:
        raise SettingsError(
            f"method={settings.method!r} looks at more than one layer's inputs, and cannot prune "
            "layer by layer. Use method='stat', or stat_prune.prune where the model fits in memory."
        )
    recipe = settings.recipe
    if recipe.allocation == "searched" and settings.effort != "fast":
        raise SettingsError(
            f"effort={settings.effort!r} measures whole models again and again. Layer by layer "
            "use effort='fast', or stat_prune.prune where the model fits in memory."
        )
    if settings.inplace:
        raise SettingsError("inplace=True: a checkpoint is never changed. Leave it away.")
    if settings.removes_blocks:
        raise SettingsError(
            "Whether blocks can leave altogether is measured on the whole model. Use "
            "remove_blocks=False, or stat_prune.prune."
        )
    if settings.head_dims:
        raise SettingsError(
            "Which dimensions of heads leave is measured on the whole model. Use head_dims=False, "
            "or stat_prune.prune."
        )
    if settings.num_passes > 1:
        raise SettingsError(
            "A second pass needs the whole model in memory. Use passes=1, or stat_prune.prune."
        )
    if settings.finish is not None:
        raise SettingsError(
            f"finish={settings.finish!r} needs the whole model in memory. Leave it out, and pass "
            "the folder of the result to stat_prune.finish where that model and the dense one fit."
        )
    if isinstance(target, Latency):
        raise TargetError(
            f"{target!r} needs the whole model in memory, to be timed. Use MACs or Parameters, or "
            "stat_prune.prune."
        )
    if num_processes() > 1:
        raise SettingsError(
            f"{num_processes()} processes were started, but layers are pruned one by one in one "
            "process. Start one, or use stat_prune.prune."
        )
    return recipe


def check_streamed(target: Target) -> None:
    """Refuse what is found on whole models.

    Raises
    ------
    TargetError
    """
    reason = whole_model_for(target)
    if reason is not None:
        raise TargetError(reason)


def whole_model_for(target: Target) -> str | None:
    """Why a target takes the whole model, and what to ask for instead; None where it does not."""
    if target.of_dimensions:
        return (
            f"{target!r} is of dimensions inside heads, which are chosen on the whole model. Use "
            "fractions of heads and neurons, or stat_prune.prune."
        )
    return None


def obstacle(model: PreTrainedModel) -> str | None:
    """Why a model's layers cannot be pruned one by one; None where they can."""
    blocks, record = find_blocks(model), getattr(model.config, "stat_prune", None) or {}
    reasons = {
        "has several stacks of layers": len(stacks_of(model)) > 1,
        "shares weights between layers": any(block.calls > 1 for block in blocks),
        "has lost dimensions inside heads": "head_dims" in record,
        "hands position biases from layer to layer": any(b.position_bias == "own" for b in blocks),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def check_model(checkpoint: Checkpoint) -> None:
    """Refuse models that need to be whole.

    Raises
    ------
    ModelError
    """
    model = checkpoint.model
    reason = obstacle(model)
    if reason is not None:
        raise ModelError(
            f"{type(model).__name__} {reason} and cannot be pruned layer by layer. Load it and use "
            "stat_prune.prune."
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"The checkpoint {str(checkpoint.folder)!r} is quantized. Prune the full-precision "
            "model and quantize the result."
        )


def check_space(working: Path, needs: Needs) -> None:
    """Refuse to begin where the disk has too little room.

    Raises
    ------
    SaveError
    """
    parent = next(folder for folder in working.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needs.disk:
        raise SaveError(
            f"The working folder {str(working)!r} will take {needs.disk / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free. Free some space, or pass another work_dir=."
        )
