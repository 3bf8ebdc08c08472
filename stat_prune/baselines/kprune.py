"""K-prune: knowledge-preserving pruning of encoders (Park, Choi and Kang 2024); label-free.

Sublayer by sublayer from the bottom: what every head and neuron from there on knows is measured in
the model as pruned so far; the units of that sublayer that know least leave, under one threshold
over all that is left; the weight of what remains is solved for what the dense sublayer gave.

Temperature, lambda and mu are those of the authors' published example (BERT on MRPC), for all
tasks; the paper searches lambda and mu by task. They belong to the scale of the published code,
which is kept to: representational knowledge is a mean over tokens and output features, and a head's
knowledge is the mean over its channels. Predictive knowledge is of the gradient of every example,
where that code takes the mean gradient of a batch. Where a block would lose all of its units, one
is kept.

References
----------
.. [1] Park, Choi and Kang, "Accurate Retraining-free Pruning for Pretrained Encoder-based Language
   Models", ICLR 2024 (arXiv:2308.03449); code: github.com/snudm-starlab/K-prune.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stat_prune.baselines.layer_inputs import (
    LayerwiseModel,
    dense_sums,
    mask_block,
    reconstruction_moments,
)
from stat_prune.baselines.mask_gradients import mask_gradients
from stat_prune.baselines.ranking import RankedUnits, budget_of, unit_cost
from stat_prune.baselines.task_loss import check_decides, decisions, divergences
from stat_prune.choosing.budget.costs import Budget, CostFunction
from stat_prune.choosing.plan import BlockPlan, Sizes
from stat_prune.choosing.planned import plan_of
from stat_prune.data.batching import token_mask
from stat_prune.families import transformer_layers
from stat_prune.linalg import least_squares_from_moments
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.collectors import MomentsCollector
from stat_prune.measuring.statistics import BlockStatistics, statistics_of
from stat_prune.model.blocks import Block
from stat_prune.model.projections import projection
from stat_prune.model.running import evaluating
from stat_prune.pipeline.method_requirements import check_encoder, single_fraction
from stat_prune.pipeline.run import Run
from stat_prune.settings.methods import Baseline

#: Of the softmax, gamma in the paper.
TEMPERATURE = 2.0
#: Weight of representational beside predictive knowledge, lambda.
REPRESENTATIONAL = 2.5e-4
#: Weight of heads beside neurons, mu.
HEADS = 64.0


def plan(run: Run, budget: Budget, search: Callable[[], Sizes] | None = None) -> list[BlockPlan]:
    """Measure, search and tune, sublayer by sublayer.

    Predictions of a regression are measured in units of their standard deviation over the
    calibration set, so that lambda means the same whatever the scale of the scores.

    Parameters
    ----------
    run : Run
    budget : Budget
        One fraction of MACs or parameters for heads and neurons together.
    search : callable, optional
        What finds how many units each block keeps, in place of one threshold over all that is left.

    Raises
    ------
    TargetError
        For a `Tolerance` or a fraction by kind.
    ModelError
        For decoders, and for models without a head that decides about a whole sequence.
    """
    fraction = single_fraction(budget.target, "kprune")
    check_encoder(run, "kprune")
    sizes = None
    if search is not None:
        check_decides(run)
        sizes = search()
    cost = budget.cost
    left = budget_of(run.blocks, run.untouched, fraction, cost)
    batches = run.calibration.batches
    with evaluating(run.model):
        dense = LayerwiseModel(run.model, batches)
        pruned = LayerwiseModel(copy.deepcopy(run.model).requires_grad_(False), batches)
        with run.stage("collect"):
            predictions, statistics = _collect(run, dense)
        knowledge = _Knowledge(predictions)
        plans: list[BlockPlan] = []
        intact = True  # as long as nothing has left, there is nothing to make up for
        with run.stage("measure, search and tune"):
            for layer in run.tracked(range(len(transformer_layers(run.model)))):
                if layer:
                    pruned.advance()
                members = [one for one in statistics if one.block.layer == layer]
                sums = dense_sums(dense, [one.block for one in members])
                for one in members:
                    # Blocks that are looked at: one threshold is over all that is left.
                    looked_at = statistics[len(plans) :] if sizes is None else [one]
                    remaining = [other.block for other in looked_at]
                    known = (
                        _knowledge_of_dense(looked_at)
                        if intact
                        else knowledge.of(pruned, remaining)
                    )
                    ranking = RankedUnits(remaining, _importance(known, remaining, cost), cost)
                    beyond_one = (
                        max(ranking.most_within(left), 0)
                        if sizes is None
                        else sizes[one.block.name][0] - 1
                    )
                    units = ranking.units(beyond_one)[one.block.name]
                    intact = intact and len(units) == one.block.num_units
                    plans.append(
                        plan_of(one, units)
                        if intact
                        else _tuned(one, pruned, sums[one.block.name], units)
                    )
                    mask_block(pruned.model, one.block, units, plans[-1].folded.weight)
                    left -= cost(one.block, len(units), len(units))
    return plans


def _collect(run: Run, dense: LayerwiseModel) -> tuple[list[list[Tensor]], list[BlockStatistics]]:
    """The decisions about each batch and the statistics of each block, from one pass."""
    base = run.model.base_model
    predictions = []
    with MomentsCollector(base, run.blocks, device=run.device) as collector:
        for position, batch in enumerate(run.tracked(dense.batches)):
            collector.expect(batch)
            predictions.append(decisions(dense.finish(position), batch))
    return predictions, statistics_of(base, run.blocks, collector.moments, absorb_mean=False)


def _knowledge_of_dense(statistics: Sequence[BlockStatistics]) -> dict[str, Tensor]:
    """What `_Knowledge.of` finds in the dense model, where no divergence has a gradient."""
    return {
        one.block.name: _representational(one.gram.diagonal() / one.num_tokens, one.weight)
        for one in statistics
    }


def _representational(energy: Tensor, weight: Tensor) -> Tensor:
    """Lambda times the mean square of what each channel adds; its own mean square is `energy`."""
    return REPRESENTATIONAL * energy * weight.double().square().mean(0)


class _Knowledge:
    """What units know of the dense model's predictions and of its representations.

    Parameters
    ----------
    predictions : sequence of list of Tensor
        The dense model's `decisions` about each batch.
    """

    def __init__(self, predictions: Sequence[list[Tensor]]) -> None:
        self._predictions = predictions
        self._scale = 1.0
        if predictions[0][0].shape[1] == 1:
            spread = torch.cat([logits for (logits,) in predictions]).std()
            self._scale = max(float(spread), 1e-30)

    def of(self, pruned: LayerwiseModel, blocks: Sequence[Block]) -> dict[str, Tensor]:
        """Knowledge of each channel of these blocks; (m,), by block name.

        Predictive: half the mean squared gradient, over the examples, of the divergence from the
        dense predictions by a mask on the channel. Representational: the mean square of what the
        channel adds to its sublayer's output.
        """
        base = pruned.model.base_model
        squares, energies = (
            {
                block.name: torch.zeros(
                    block.num_channels, dtype=torch.float64, device=pruned.model.device
                )
                for block in blocks
            }
            for _ in range(2)
        )
        num_examples = num_tokens = 0
        for position, batch in enumerate(pruned.batches):
            mask = token_mask(batch).to(pruned.model.device)

            def losses(position: int = position) -> Tensor:
                output = pruned.finish(position)
                return divergences(
                    self._predictions[position],
                    decisions(output, pruned.batches[position]),
                    temperature=TEMPERATURE,
                    scale=self._scale,
                )

            with _adding_energies(base, blocks, mask, energies):
                gradients = mask_gradients(base, blocks, len(mask), losses, by_channel=True)
            for name, rows in gradients.items():
                squares[name] += rows.double().square().sum(0)
            num_examples += len(mask)
            num_tokens += int(mask.sum())
        return {
            block.name: squares[block.name] / (2 * num_examples)
            + _representational(
                energies[block.name] / num_tokens, projection(base, block.consumer).weight
            )
            for block in blocks
        }


@contextmanager
def _adding_energies(
    base_model: nn.Module, blocks: Sequence[Block], mask: Tensor, energies: dict[str, Tensor]
) -> Iterator[None]:
    """Add up the squares of every channel over the tokens that are no padding."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            energies[name] += args[0].detach()[mask].double().square().sum(0)

        return hook

    handles = [
        projection(base_model, block.consumer).module.register_forward_pre_hook(
            hook_for(block.name)
        )
        for block in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _importance(
    knowledge: dict[str, Tensor], blocks: Sequence[Block], cost: CostFunction
) -> dict[str, Tensor]:
    """Knowledge of each unit for what it costs, heads weighed by mu; (u,), by block name."""
    return {
        block.name: knowledge[block.name].reshape(block.num_units, block.unit_size).mean(1)
        * ((HEADS if block.kind == "heads" else 1.0) / unit_cost(block, cost))
        for block in blocks
    }


def _tuned(
    statistics: BlockStatistics, pruned: LayerwiseModel, sums: Sequence[Tensor], units: Tensor
) -> BlockPlan:
    """Solve for the weight that makes of the kept channels what the dense sublayer gave."""
    moments = reconstruction_moments(pruned, statistics.block, sums, units)
    gram, cross, _ = moments.normal_equations()
    with gathered_numerical_warnings("tuning the weight of a sublayer"):
        weight = least_squares_from_moments(gram, cross).T
        return plan_of(statistics, units, weight)


KPRUNE = Baseline("kprune", plan, reads_output=True, takes_sizes=True)
