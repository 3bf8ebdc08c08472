"""The steps of `vib_finetune`: train masks, choose units, cut, train what is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.checkpoints.beside import leave_source
from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.choosing.budget.costs import Budget
from stat_prune.data.training_data import TrainingSet, training_set, uses_labels
from stat_prune.errors import ModelError
from stat_prune.families import find_blocks
from stat_prune.measuring.distillation import layer_map_of
from stat_prune.model.blocks import Block
from stat_prune.model.ignoring import without_ignored
from stat_prune.pipeline.accounting import measure, report_of, row_of
from stat_prune.pipeline.budgeting.budgets import resolve
from stat_prune.pipeline.method_requirements import check_no_experts
from stat_prune.pipeline.reached import check_fraction
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.saving import Output
from stat_prune.reporting.result import PruningResult
from stat_prune.settings.targets import Parameters, Target
from stat_prune.surgery.cut import apply
from stat_prune.vib.config import VIBConfig
from stat_prune.vib.folder import RunFolder
from stat_prune.vib.hidden import HiddenMask, hiding
from stat_prune.vib.mask_cost import Lagrangian, MaskCosts
from stat_prune.vib.mask_folding import fold_masks
from stat_prune.vib.mask_selection import kept_units, select
from stat_prune.vib.masks import VIBMask, make_masks, masking
from stat_prune.vib.objective import HiddenConstraint, MaskedObjective, Objective, check_terms
from stat_prune.vib.stream import cut_hidden, hidden_count, narrowed, other_parameters
from stat_prune.vib.trainer import Stage, num_steps, train


@dataclass
class Finetuning:
    """What all steps share."""

    run: Run
    budget: Budget
    config: VIBConfig
    objective: Objective
    data: TrainingSet
    hidden: int | None

    @classmethod
    def prepared(
        cls,
        run: Run,
        target: Target,
        config: VIBConfig,
        teacher: PreTrainedModel,
        labels: bool | None,
        hidden: float | None,
    ) -> Finetuning:
        """Check what can be checked before any work."""
        check_no_experts(run, "vib")
        if config.train_weights and run.model.dtype != torch.float32:
            raise ModelError(
                f"The model is in {run.model.dtype}, in which small updates of weights are lost. "
                "Load it with dtype=torch.float32, or train masks alone: mode='masks'."
            )
        compares = config.hidden_weight > 0
        labelled = uses_labels(run.model, run.calibration, labels)
        check_terms(run.model, config, labelled=labelled)
        objective = Objective(
            teacher=teacher,
            config=config,
            labelled=labelled,
            layer_map=layer_map_of(run.model, teacher, config.layer_map) if compares else (),
        )
        data = training_set(run.calibration, config.data_fraction, seed=run.settings.seed)
        count = None if hidden is None else hidden_count(run.model, hidden)
        (budget,) = resolve(run, [target])
        return cls(run, budget, config, objective, data, count)

    def prices(self, hidden: int | Tensor | None) -> MaskCosts:
        """What masks pay for between so many hidden dimensions; None for all of them."""
        run, target, sublayers = self.run, self.budget.target, self.config.sublayers
        cost = target.cost(self.budget.seq_length)
        dense = MaskCosts.of(run.blocks, run.untouched, cost, sublayers=sublayers)
        if hidden is None:
            return dense
        counted = isinstance(target, Parameters)
        blocks, untouched = narrowed(run.blocks, hidden), narrowed(run.untouched, hidden)
        narrow = MaskCosts.of(blocks, untouched, cost, sublayers=sublayers)
        size = int(run.model.config.hidden_size)
        others: list[Any] = [
            other_parameters(run.model, n) if counted else 0 for n in (hidden, size)
        ]
        fixed, total = narrow.fixed + others[0], dense.total + others[1]
        return replace(narrow, fixed=fixed, total=total)

    def _prices_of(self, blocks: Sequence[Block], hidden: int | Tensor | None) -> MaskCosts:
        """`prices` of the blocks that a smaller model still has."""
        names = {block.name for block in blocks}
        present = [block.name in names for block in self.run.blocks]
        return self.prices(hidden).of_blocks(present)

    def results(self, fractions: Sequence[float], folder: RunFolder | None) -> list[PruningResult]:
        """The model of each fraction, from the one before."""
        results: list[PruningResult] = []
        for fraction in fractions:
            place = folder / f"{fraction:g}" if folder else None
            results.append(self._step(fraction, results[-1] if results else None, place))
        return results

    def _step(
        self, fraction: float, before: PruningResult | None, place: RunFolder | None
    ) -> PruningResult:
        done = place.result("model", self.run) if place else None
        if done is not None:
            return done
        result = place.result("cut", self.run) if place else None
        if result is None:
            result = self._cut(fraction, before, place)
            if place:
                Output(place.path / "cut").save(result)
        if "hidden" in result.plan:
            size = self.objective.teacher.config.hidden_size
            counts = torch.zeros(size, device=self.run.device)
            counts[result.plan["hidden"]] = 1
            self.objective.dimensions = counts
        if self.config.finetunes:
            steps = self._steps(self.config.finetune_steps, self.config.finetune_epochs)
            checkpoints = place.path / "finetune" if place else None
            stage = Stage("train pruned model", steps, checkpoints, max_grad_norm=1.0)
            train(result.model, self.objective, self.data, stage, self.config, self.run)
            seconds = dict(self.run.stopwatch.seconds)
            result = replace(result, report=replace(result.report, seconds=seconds))
        if place:
            Output(place.path / "model").save(result)
        return result

    def _steps(self, steps: int | None, epochs: float) -> int:
        return num_steps(steps, epochs, self.data, self.config.batch_size)

    def _cut(
        self, fraction: float, before: PruningResult | None, place: RunFolder | None
    ) -> PruningResult:
        """Train masks, choose the units that fit, and cut a copy."""
        run, target = self.run, self.budget.target
        start = before.model if before else run.model
        student = copy.deepcopy(start)
        blocks, _ = without_ignored(find_blocks(student), run.settings.ignore)
        masks, hidden = None, None
        facts: dict[str, Any] = {}
        units = [torch.arange(block.num_units) for block in blocks]
        steps: list[float] = []
        if fraction < 1 or self.hidden is not None:
            masks = make_masks(blocks, self.config, seed=run.settings.seed)
            hidden = self._hidden_mask()
            self._train_masks(student, blocks, masks, hidden, fraction, place)
            prices = self._prices_of(blocks, self.hidden)
            selection = select(masks, prices, fraction)
            steps = prices.steps([bool(kept.all()) for kept in selection.kept])
            units = [kept_units(b, kept) for b, kept in zip(blocks, selection.kept, strict=True)]
            facts["threshold_fraction"] = selection.threshold_fraction
        plans = fold_masks(student, blocks, masks, units, self.config, run)
        with run.stage("cut"):
            apply(student, [plan.folded for plan in plans])
            if hidden is not None:
                kept = hidden.log_alpha().argsort()[: self.hidden].sort().values.cpu()
                cut_hidden(student, kept, hidden.mean)
            as_pruned_class(student)
        dense, cut = (measure(m, self.budget.seq_length) for m in (run.model, student))
        counted = self._counted
        reached = getattr(cut, counted) / getattr(dense, counted)
        check_fraction(target, fraction, reached, steps)
        report = report_of(run, self.budget, list(map(row_of, plans)), dense, cut)
        leave_source(student)
        settings = report.settings | {
            "method": "vib",
            "target": f"{fraction:g} of {type(target).__name__}",
            "num_calibration_samples": run.calibration.num_samples,
            "training_samples": len(self.data),
            "labels": self.objective.labelled,
            "vib": self.config.to_dict(),
            **facts,
        }
        plan = {plan.folded.block.name: plan.folded.units.tolist() for plan in plans}
        if hidden is not None:
            plan["hidden"] = kept.tolist()
        result = PruningResult(student, replace(report, settings=settings), plan, run.tokenizer)
        return in_dense_units(result, run.blocks, before) if before else result

    @property
    def _counted(self) -> str:
        """What of a model's size the target is a fraction of."""
        if not isinstance(self.budget.target, Parameters):
            return "block_macs"
        return "block_parameters" if self.hidden is None else "parameters"

    def _hidden_mask(self) -> HiddenMask | None:
        if self.hidden is None:
            return None
        generator = torch.Generator().manual_seed(self.run.settings.seed)
        size = int(self.run.model.config.hidden_size)
        return HiddenMask(size, 1, self.config, generator)

    def _train_masks(
        self,
        student: PreTrainedModel,
        blocks: Sequence[Block],
        masks: Sequence[VIBMask],
        hidden: HiddenMask | None,
        fraction: float,
        place: RunFolder | None,
    ) -> None:
        """Train masks, and the weights with them, in place."""
        config = self.config
        steps = self._steps(config.mask_steps, config.mask_epochs)
        if config.mask_steps is None:
            steps = max(steps, config.least_mask_steps)
        lagrangian = Lagrangian()
        objective = MaskedObjective(
            objective=self.objective,
            masks=masks,
            costs=partial(self._prices_of, blocks),
            lagrangian=lagrangian,
            start=float(self._prices_of(blocks, None).fraction([b.num_groups for b in blocks])),
            target=fraction,
            warmup_steps=math.ceil(config.target_warmup * steps),
        )
        others: list[nn.Module] = [lagrangian]
        if hidden is not None and self.hidden is not None:
            constraint = HiddenConstraint(hidden, self.hidden / len(hidden.mean))
            objective.hidden = constraint
            others += [hidden, constraint.lagrangian]
        trained = {name: p.requires_grad for name, p in student.named_parameters()}
        if not config.train_weights:
            student.requires_grad_(False)
        with masking(student, blocks, masks, *others), ExitStack() as stack:
            if hidden is not None:
                stack.enter_context(hiding(student, hidden, config.cost_slope))
            checkpoints = place.path / "masks" if place else None
            stage = Stage("train masks", steps, checkpoints, max_grad_norm=0.0)
            train(student, objective, self.data, stage, config, self.run)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(trained[name])


def in_dense_units(
    result: PruningResult, blocks: Sequence[Block], before: PruningResult
) -> PruningResult:
    """The plan and the sizes of a model that was cut from a smaller one, told of the dense one."""
    plan = {
        name: [units[i] for i in result.plan.get(name, ())] for name, units in before.plan.items()
    }
    dense = {block.name: block for block in blocks}
    rows = [
        replace(row, total=dense[row.name].num_units, total_groups=dense[row.name].num_groups)
        if row.name in dense
        else row
        for row in result.report.blocks
    ]
    there = {row.name for row in rows}
    rows += [row for row in before.report.blocks if row.name not in there]
    rows.sort(key=lambda row: (row.layer, row.kind))
    return replace(result, plan=plan, report=replace(result.report, blocks=rows))
