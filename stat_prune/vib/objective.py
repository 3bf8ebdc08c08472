"""What is minimised: task loss, distillation, information, and the constraint on the cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.data.training_data import task_labels
from stat_prune.errors import DataError
from stat_prune.measuring.distillation import LayerMap, hidden_distance, logit_distance, run_on
from stat_prune.model.running import Batch
from stat_prune.vib.config import VIBConfig
from stat_prune.vib.hidden import HiddenMask
from stat_prune.vib.mask_cost import Lagrangian, MaskCosts, warmed_up
from stat_prune.vib.masks import VIBMask


def check_terms(model: PreTrainedModel, config: VIBConfig, *, labelled: bool) -> None:
    """Refuse a loss of which no term is left.

    Raises
    ------
    DataError
        If no weight is left without the task loss, where there is no label, and without that of
        the logits, where there is no head.
    """
    logits = config.logit_weight and model.base_model is not model
    if (labelled and config.task_weight) or logits or config.hidden_weight:
        return
    raise DataError(
        f"There is nothing to learn from: of the losses that have a weight, {type(model).__name__} "
        "on these data has none. Give each example one number in a column 'label' and load the "
        "model with its head, or set hidden_weight or logit_weight in the config to learn from the "
        "teacher."
    )


@dataclass
class Objective:
    """Task loss and distillation.

    Attributes
    ----------
    teacher : PreTrainedModel
        In evaluation mode.
    config : VIBConfig
    labelled : bool
        Whether the task loss counts.
    layer_map : tuple of pairs of int
    dimensions : Tensor of shape (hidden size,), optional
        How much each hidden dimension of the teacher counts.
    """

    teacher: PreTrainedModel
    config: VIBConfig
    labelled: bool
    layer_map: LayerMap
    dimensions: Tensor | None = None

    def terms(self, model: PreTrainedModel, batch: Batch, step: int) -> dict[str, Tensor]:
        """Terms of the loss at a step, weighted, by name."""
        config = self.config
        extra = {}
        if self.labelled and config.task_weight:
            extra["labels"] = task_labels(model, batch)
        output, states = run_on(model, batch, extra)
        terms = {}
        if extra:
            terms["task"] = config.task_weight * output["loss"]
        if config.logit_weight or config.hidden_weight:
            with torch.no_grad():
                expected, expected_states = run_on(self.teacher, batch)
            logits = logit_distance(output, expected, batch, config.temperature)
            if config.logit_weight and logits is not None:
                terms["logits"] = config.logit_weight * logits
            if config.hidden_weight:
                distance = hidden_distance(
                    states, expected_states, batch, self.layer_map, self.dimensions
                )
                terms["hidden"] = config.hidden_weight * distance
        return terms

    def progress(self) -> dict[str, float]:
        """What the progress bar shows beside the loss."""
        return {}


@dataclass
class HiddenConstraint:
    """The mask of the hidden dimensions, held at a fraction of its own.

    Attributes
    ----------
    mask : HiddenMask
    target : float
    lagrangian : Lagrangian
    """

    mask: HiddenMask
    target: float
    lagrangian: Lagrangian = field(default_factory=Lagrangian)


@dataclass
class MaskedObjective:
    """The same with masks: their information, and the Lagrangian of the cost.

    Attributes
    ----------
    objective : Objective
    masks : sequence of VIBMask
    costs : callable
        What the masks pay for, given the number of hidden dimensions.
    lagrangian : Lagrangian
    start, target : float
        Kept fractions, before and after the warm-up.
    warmup_steps : int
    hidden : HiddenConstraint, optional
    """

    objective: Objective
    masks: Sequence[VIBMask]
    costs: Callable[[Tensor | None], MaskCosts]
    lagrangian: Lagrangian
    start: float
    target: float
    warmup_steps: int
    hidden: HiddenConstraint | None = None
    _shown: dict[str, float] = field(default_factory=dict)

    def terms(self, model: PreTrainedModel, batch: Batch, step: int) -> dict[str, Tensor]:
        """Terms of the loss at a step, weighted, by name."""
        config, hidden = self.objective.config, self.hidden
        masks = [*self.masks, hidden.mask] if hidden else self.masks
        width = None
        if hidden:
            weights = hidden.mask.keep_probability(config.cost_slope)
            width, self.objective.dimensions = weights.sum(), weights.detach()
        terms = self.objective.terms(model, batch, step)
        information = torch.stack([mask.kl() for mask in masks]).sum()
        terms["kl"] = config.kl_weight * information / sum(mask.num_masks for mask in masks)
        expected = self.costs(width).expected(self.masks, config.cost_slope)
        target = self._target(self.start, self.target, step)
        terms["constraint"] = self.lagrangian(expected, target)
        self._shown = {"cost": float(expected.detach()), "target": target}
        if hidden and width is not None:
            fraction = width / len(hidden.mask.mean)
            held = hidden.lagrangian(fraction, self._target(1.0, hidden.target, step))
            terms["hidden constraint"] = held
            self._shown["hidden"] = float(fraction.detach())
        return terms

    def _target(self, start: float, target: float, step: int) -> float:
        return warmed_up(start, target, step, self.warmup_steps)

    def progress(self) -> dict[str, float]:
        """Expected cost and the target of the last step."""
        return self._shown
