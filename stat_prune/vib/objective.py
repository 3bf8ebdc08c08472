"""What is minimised: task loss, distillation, information, and the constraint on the cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.collectors import Batch
from stat_prune.vib.config import VIBConfig
from stat_prune.vib.cost import Lagrangian, MaskCosts, warmed_up
from stat_prune.vib.data import task_labels
from stat_prune.vib.distillation import (
    LayerMap,
    hidden_distance,
    logit_distance,
    run_on,
    teacher_output,
)
from stat_prune.vib.masks import VIBMask


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
    """

    teacher: PreTrainedModel
    config: VIBConfig
    labelled: bool
    layer_map: LayerMap

    def terms(self, model: PreTrainedModel, batch: Batch, step: int) -> dict[str, Tensor]:
        """Terms of the loss at a step, weighted, by name."""
        config = self.config
        extra = {}
        if self.labelled and config.task_weight:
            extra["labels"] = task_labels(model, batch)
        compares = config.hidden_weight > 0
        output = run_on(model, batch, hidden_states=compares, extra=extra)
        terms = {}
        if extra:
            terms["task"] = config.task_weight * output["loss"]
        if config.logit_weight or compares:
            expected = teacher_output(self.teacher, batch, hidden_states=compares)
            logits = logit_distance(output, expected, batch, config.temperature)
            if config.logit_weight and logits is not None:
                terms["logits"] = config.logit_weight * logits
            if compares:
                distance = hidden_distance(output, expected, batch, self.layer_map)
                terms["hidden"] = config.hidden_weight * distance
        return terms

    def progress(self) -> dict[str, float]:
        """What the progress bar shows beside the loss."""
        return {}


@dataclass
class MaskedObjective:
    """The same with masks: their information, and the Lagrangian of the cost.

    Attributes
    ----------
    objective : Objective
    masks : sequence of VIBMask
    costs : MaskCosts
    lagrangian : Lagrangian
    start, target : float
        Kept fractions, before and after the warm-up.
    warmup_steps : int
    """

    objective: Objective
    masks: Sequence[VIBMask]
    costs: MaskCosts
    lagrangian: Lagrangian
    start: float
    target: float
    warmup_steps: int
    _shown: dict[str, float] = field(default_factory=dict)

    def terms(self, model: PreTrainedModel, batch: Batch, step: int) -> dict[str, Tensor]:
        """Terms of the loss at a step, weighted, by name."""
        config = self.objective.config
        if not config.train_weights:
            # Frozen weights cannot learn to do without what dropout takes.
            model.eval()
            for mask in self.masks:
                mask.train()
        terms = self.objective.terms(model, batch, step)
        information = torch.stack([mask.kl() for mask in self.masks]).sum()
        count = sum(len(mask.mean) for mask in self.masks)
        expected = self.costs.expected(self.masks, config.cost_slope)
        target = warmed_up(self.start, self.target, step, self.warmup_steps)
        self._shown = {"cost": float(expected.detach()), "target": target}
        return terms | {
            "kl": config.kl_weight * information / count,
            "constraint": self.lagrangian(expected, target),
        }

    def progress(self) -> dict[str, float]:
        """Expected cost and the target of the last step."""
        return self._shown
