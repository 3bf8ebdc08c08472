"""From trained masks to a smaller model: their means, and STAT's correction, go into consumers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.choosing.correction import activation_error, fold
from stat_prune.choosing.plan import BlockPlan
from stat_prune.choosing.planned import plan_of
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.statistics import statistics_of
from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection
from stat_prune.pipeline.run import Run
from stat_prune.vib.config import VIBConfig
from stat_prune.vib.masks import VIBMask


def fold_masks(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    masks: Sequence[VIBMask] | None,
    units: Sequence[Tensor],
    config: VIBConfig,
    run: Run,
) -> list[BlockPlan]:
    """What the consumers become without the units that leave; `model` is then without masks.

    Parameters
    ----------
    model : PreTrainedModel
        Its consumers take the means of the masks, unless the correction is that of the model
        without them.
    blocks : sequence of Block
    masks : sequence of VIBMask, or None
    units : sequence of Tensor of shape (k,), int64
        Units that stay, by block.
    config : VIBConfig
    run : Run
        For its data, clock and progress bar.
    """
    if masks is not None and config.folding != "corrected":
        _multiply_means(model, blocks, masks)
    corrected = config.folding != "means"
    batches = run.calibration.subset(config.correction_samples, seed=run.settings.seed).batches
    with run.stage("fold masks"), gathered_numerical_warnings("folding the masks"):
        moments = collect_moments(model, blocks, run.tracked(batches))
        statistics = statistics_of(model.base_model, blocks, moments, absorb_mean=corrected)
        if not corrected:
            return [plan_of(one, kept) for one, kept in zip(statistics, units, strict=True)]
        return [
            BlockPlan(fold(one, kept), activation_error(one, kept))
            for one, kept in zip(statistics, units, strict=True)
        ]


@torch.no_grad()
def _multiply_means(
    model: PreTrainedModel, blocks: Sequence[Block], masks: Sequence[VIBMask]
) -> None:
    for block, mask in zip(blocks, masks, strict=True):
        weight = projection(model.base_model, block.consumer).weight
        means = mask.means().repeat_interleave(mask.width)
        weight.copy_(weight.double() * means.double())
