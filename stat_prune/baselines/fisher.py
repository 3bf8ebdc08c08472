"""Post-training pruning by Fisher information (Kwon et al. 2022).

Masks on heads and neurons are chosen by the diagonal of the Fisher information of the masks, then
rearranged within each block by the whole of it, then given real values that reconstruct the dense
model's sublayers. The Fisher information is that of the task loss: it reads the labels of the
calibration set, and where there are none the model's own predictions (the paper has labels).

Where the paper keeps no unit of a block, one is kept.

References
----------
.. [1] Kwon, Kim, Mahoney, Hassoun, Keutzer and Gholami, "A Fast Post-Training Pruning Framework for
   Transformers", NeurIPS 2022 (arXiv:2204.09656).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.baselines.mask_gradients import mask_gradients
from stat_prune.baselines.mask_search import rearrange, search
from stat_prune.baselines.mask_tuning import dense_statistics, tuned_plans
from stat_prune.baselines.ranking import budget_of
from stat_prune.baselines.task_loss import task_losses
from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.plan import BlockPlan
from stat_prune.model.running import evaluating, model_inputs
from stat_prune.pipeline.method_requirements import check_encoder, single_fraction
from stat_prune.pipeline.run import Run
from stat_prune.settings.methods import Baseline


def plan(run: Run, budget: Budget) -> list[BlockPlan]:
    """Search, rearrange, tune.

    Parameters
    ----------
    run : Run
    budget : Budget
        One fraction of MACs or parameters for heads and neurons together.

    Raises
    ------
    TargetError
        For a `Tolerance` or a fraction by kind.
    ModelError
        For decoders, and for models without a head that decides about a whole sequence.
    DataError
        If the labels do not fit the model.
    """
    return _plan(run, budget, "fisher", tuned=True)


def plan_untuned(run: Run, budget: Budget) -> list[BlockPlan]:
    """`plan` without the tuning of masks."""
    return _plan(run, budget, "fisher-untuned", tuned=False)


def _plan(run: Run, budget: Budget, method: str, *, tuned: bool) -> list[BlockPlan]:
    fraction = single_fraction(budget.target, method)
    check_encoder(run, method)
    cost = budget.cost
    with evaluating(run.model):
        pruned = copy.deepcopy(run.model).requires_grad_(False)
        with run.stage("mask gradients"):
            gradients = _gradients(run, pruned)
        with run.stage("search"):
            kept = search(
                run.blocks,
                {name: rows.square().sum(0) for name, rows in gradients.items()},
                cost,
                budget_of(run.blocks, run.untouched, fraction, cost),
            )
            kept = {name: rearrange(gradients[name], units) for name, units in kept.items()}
        return tuned_plans(run, dense_statistics(run), kept, pruned if tuned else None)


def _gradients(run: Run, model: PreTrainedModel) -> dict[str, Tensor]:
    """Of each example's task loss by the mask of each unit: (examples, units), by block name."""
    labelled = all("labels" in batch for batch in run.calibration.batches)
    rows: dict[str, list[Tensor]] = {block.name: [] for block in run.blocks}
    for batch in run.tracked(run.calibration.batches):

        def losses(batch: Mapping[str, Tensor] = batch) -> Tensor:
            output = model(**model_inputs(model, batch, run.device))
            return task_losses(output, batch, labelled=labelled)

        gradients = mask_gradients(model.base_model, run.blocks, len(batch["input_ids"]), losses)
        for name, values in gradients.items():
            rows[name].append(values.cpu())
    return {name: torch.cat(values) for name, values in rows.items()}


FISHER = Baseline("fisher", plan, reads_output=True)
UNTUNED = Baseline("fisher-untuned", plan_untuned, reads_output=True)
