"""`vib_finetune`: train masks under a budget, cut, train what is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.accounting import account, measure
from stat_prune.architectures import find_blocks
from stat_prune.blocks import Block
from stat_prune.budget.costs import cost_function
from stat_prune.checkpoint import as_pruned_class
from stat_prune.errors import ModelError, SettingsError, TargetError
from stat_prune.ignoring import without_ignored
from stat_prune.peers.requirements import check_no_experts, check_single_fraction
from stat_prune.result import PruningResult
from stat_prune.run import Run, starting
from stat_prune.settings import Settings
from stat_prune.surgery import apply
from stat_prune.targets import Latency, Target
from stat_prune.vib.config import VIBConfig, config_named
from stat_prune.vib.cost import Lagrangian, MaskCosts
from stat_prune.vib.data import TrainingSet, training_set, uses_labels
from stat_prune.vib.distillation import check_teacher, layer_map_of
from stat_prune.vib.folder import RunFolder
from stat_prune.vib.folding import fold_masks
from stat_prune.vib.masks import VIBMask, make_masks, masking
from stat_prune.vib.objective import MaskedObjective, Objective
from stat_prune.vib.selection import kept_units, select
from stat_prune.vib.trainer import Stage, num_steps, train

#: More examples than any data set has.
_ALL = 2**62


def vib_finetune(
    model: PreTrainedModel,
    train_dataset: Any,
    *,
    target: Target,
    mode: str | VIBConfig = "full",
    teacher: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    labels: bool | None = None,
    gradual: Sequence[float] = (),
    max_seq_length: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    ignore: Iterable[int | str] = (),
    output_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> PruningResult:
    """Shrink a model, dense or pruned before, by masks that are trained with it (VTrans).

    Masks ``z = mean + sigma * noise`` on heads and neurons learn, under a penalty on what they let
    pass (a variational information bottleneck) and a Lagrangian on the expected cost, which units
    carry signal. Units are then kept in the order of ``log alpha = log sigma^2 - log mean^2`` as
    far as the budget goes, the model is cut, and what is left is trained on. The given model is
    left as it is.

    Parameters
    ----------
    model : PreTrainedModel
        In float32, unless only masks are trained. Parameters that require no gradient stay as they
        are.
    train_dataset : object
        As for `stat_prune.prune`; all of it is read. Labels are one number an example in a column
        ``labels`` or ``label``; texts are their own for causal language models.
    target : MACs or Parameters
        One fraction of what `model` costs as it is given; 1 removes nothing and only trains.
        MACs are counted at the mean length of the data, where the target names none.
    mode : {"full", "fast", "masks"} or VIBConfig
        ``"full"``: masks and weights, then the pruned model, on all data. ``"fast"``: the same on
        3 % of the data. ``"masks"``: masks alone, for the fewest steps, and STAT's correction after
        the cut; needs no labels.
    teacher : PreTrainedModel, optional
        Whose outputs and hidden states are matched. Default: `model`; after `prune`, pass the dense
        model.
    tokenizer : PreTrainedTokenizerBase, optional
        The model's own; needed where `train_dataset` is text, and saved with the result.
    labels : bool, optional
        Whether a task loss counts beside the teacher. Default: where all examples have labels.
    gradual : sequence of float
        Kept fractions on the way to the target, descending: masks, cut and training for each in
        turn (ZipLM's gradual setting, Kurtic et al. 2023). Every step leaves a model in
        `output_dir`, which is then needed.
    max_seq_length : int, optional
        As for `stat_prune.prune`.
    seed : int
    device : str or torch.device, optional
        Where to compute. Default: where the model is.
    ignore : iterable of int or str
        Layers, kinds or patterns of block names to leave alone.
    output_dir : path, optional
        For checkpoints, and for the model of every fraction: ``<output_dir>/0.5/model``.
    resume : bool
        Go on with what `output_dir` holds.
    progress : bool
        Show a progress bar, with expected cost and target.

    Returns
    -------
    PruningResult
        Of the target. ``report.settings["threshold_fraction"]`` is what ``log alpha < 0`` alone
        would have kept.

    Raises
    ------
    StatPruneError
        A subclass for every bad input, as for `stat_prune.prune`; `SettingsError` for a teacher of
        another vocabulary or task; `DataError` for a task loss without labels; `TargetError` for a
        target out of reach; `NonFiniteLossError` if the loss is lost.

    References
    ----------
    .. [1] Dutta, Gupta and Agarwal, "VTrans: Accelerating Transformer Compression with Variational
       Information Bottleneck based Pruning", 2024 (arXiv:2406.05276).
    .. [2] Dai, Zhu, Guo and Wipf, "Compressing Neural Networks using the Variational Information
       Bottleneck", ICML 2018.
    .. [3] Xia, Zhong and Chen, "Structured Pruning Learns Compact and Accurate Models", ACL 2022.
    """
    config = config_named(mode)
    fractions = _fractions(target, gradual, output_dir)
    settings = Settings(
        num_calibration_samples=_ALL,
        max_seq_length=max_seq_length,
        batch_size=config.batch_size,
        seed=seed,
        device=device,
        ignore=ignore if isinstance(ignore, int | str) else list(ignore),
        progress=progress,
    )
    folder = RunFolder.opened(output_dir, config, resume) if output_dir is not None else None
    with starting(model, train_dataset, tokenizer, settings) as run, _teaching(run, teacher) as one:
        finetuning = _Finetuning.prepared(run, target, config, one, labels, fractions[-1])
        return finetuning.results(fractions, folder)[-1]


def _fractions(target: Target, gradual: Sequence[float], output_dir: Any) -> list[float]:
    if isinstance(target, Latency):
        raise TargetError(f"vib_finetune takes MACs or Parameters, got {target!r}.")
    check_single_fraction(target, "vib")
    fractions = [*gradual, target.fractions()["all"]]
    if any(not 0 < after < before <= 1 for before, after in pairwise(fractions)):
        raise TargetError(
            f"`gradual` must descend towards the target within (0, 1], got {list(gradual)!r} "
            f"before {fractions[-1]:g}."
        )
    if gradual and output_dir is None:
        raise SettingsError("`gradual` leaves a model at every step. Pass output_dir= for them.")
    if find_spec("accelerate") is None:
        raise SettingsError(
            "vib_finetune trains with transformers.Trainer, which needs accelerate: "
            "pip install 'stat-prune[vib]'."
        )
    return fractions


@contextmanager
def _teaching(run: Run, teacher: PreTrainedModel | None) -> Iterator[PreTrainedModel]:
    """The teacher in evaluation mode, on the run's device; as it was afterwards."""
    chosen: nn.Module = run.model if teacher is None else teacher
    if teacher is not None:
        check_teacher(run.model, teacher)
    home = next(chosen.parameters()).device
    modes = {module: module.training for module in chosen.modules()}
    try:
        yield chosen.to(run.device).eval()  # type: ignore[misc]
    finally:
        chosen.to(home)
        for module, mode in modes.items():
            module.training = mode


@dataclass
class _Finetuning:
    """What all steps share."""

    run: Run
    target: Target
    config: VIBConfig
    objective: Objective
    data: TrainingSet
    costs: MaskCosts

    @classmethod
    def prepared(
        cls,
        run: Run,
        target: Target,
        config: VIBConfig,
        teacher: PreTrainedModel,
        labels: bool | None,
        least: float,
    ) -> _Finetuning:
        """Check what can be checked before any work."""
        check_no_experts(run, "vib")
        if config.train_weights and run.model.dtype != torch.float32:
            raise ModelError(
                f"The model is in {run.model.dtype}, in which small updates of weights are lost. "
                "Load it with dtype=torch.float32, or train masks alone: mode='masks'."
            )
        compares = config.hidden_weight > 0
        objective = Objective(
            teacher=teacher,
            config=config,
            labelled=uses_labels(run.model, run.calibration, labels),
            layer_map=layer_map_of(run.model, teacher, config.layer_map) if compares else (),
        )
        data = training_set(run.calibration, config.data_fraction, seed=run.settings.seed)
        cost = cost_function(target, run.seq_length(target))
        costs = MaskCosts.of(run.blocks, run.untouched, cost)
        costs.check_reachable(least)
        return cls(run, target, config, objective, data, costs)

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
                result.save(place.path / "cut")
        if self.config.finetunes:
            steps = self._steps(self.config.finetune_steps, self.config.finetune_epochs)
            checkpoints = place.path / "finetune" if place else None
            stage = Stage("train pruned model", steps, checkpoints, max_grad_norm=1.0)
            train(result.model, self.objective, self.data, stage, self.config, self.run)
            seconds = dict(self.run.stopwatch.seconds)
            result = replace(result, report=replace(result.report, seconds=seconds))
        if place:
            result.save(place.path / "model")
        return result

    def _steps(self, steps: int | None, epochs: float) -> int:
        return num_steps(steps, epochs, self.data, self.config.batch_size)

    def _cut(
        self, fraction: float, before: PruningResult | None, place: RunFolder | None
    ) -> PruningResult:
        """Train masks, choose the units that fit, and cut a copy."""
        run = self.run
        start = before.model if before else run.model
        student = copy.deepcopy(start)
        blocks, _ = without_ignored(find_blocks(student), run.settings.ignore)
        masks, facts = None, {}
        units = [torch.arange(block.num_units) for block in blocks]
        if fraction < 1:
            masks = make_masks(blocks, self.config, seed=run.settings.seed)
            self._train_masks(student, blocks, masks, fraction, place)
            selection = select([mask.log_alpha() for mask in masks], self.costs, fraction)
            units = [kept_units(b, kept) for b, kept in zip(blocks, selection.kept, strict=True)]
            facts["threshold_fraction"] = selection.threshold_fraction
        plans = fold_masks(student, blocks, masks, units, self.config, run)
        with run.stage("cut"):
            apply(student, [plan.folded for plan in plans])
            as_pruned_class(student)
        report = account(
            run,
            self.target,
            plans,
            measure(run.model, run.seq_length(self.target)),
            measure(student, run.seq_length(self.target)),
        )
        settings = report.settings | {
            "method": "vib",
            "target": f"{fraction:g} of {type(self.target).__name__}",
            "num_calibration_samples": run.calibration.num_samples,
            "training_samples": len(self.data),
            "labels": self.objective.labelled,
            "vib": self.config.to_dict(),
            **facts,
        }
        plan = {plan.folded.block.name: plan.folded.units.tolist() for plan in plans}
        result = PruningResult(student, replace(report, settings=settings), plan, run.tokenizer)
        return in_dense_units(result, run.blocks, before) if before else result

    def _train_masks(
        self,
        student: PreTrainedModel,
        blocks: Sequence[Block],
        masks: Sequence[VIBMask],
        fraction: float,
        place: RunFolder | None,
    ) -> None:
        """Train masks, and the weights with them, in place."""
        config = self.config
        steps = self._steps(config.mask_steps, config.mask_epochs)
        lagrangian = Lagrangian()
        objective = MaskedObjective(
            objective=self.objective,
            masks=masks,
            costs=self.costs,
            lagrangian=lagrangian,
            start=float(self.costs.fraction([block.num_groups for block in blocks])),
            target=fraction,
            warmup_steps=math.ceil(config.target_warmup * steps),
        )
        trained = {name: p.requires_grad for name, p in student.named_parameters()}
        if not config.train_weights:
            student.requires_grad_(False)
        with masking(student, blocks, masks, lagrangian):
            checkpoints = place.path / "masks" if place else None
            stage = Stage("train masks", steps, checkpoints, max_grad_norm=0.0)
            train(student, objective, self.data, stage, config, self.run)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(trained[name])


def in_dense_units(
    result: PruningResult, blocks: Sequence[Block], before: PruningResult
) -> PruningResult:
    """The plan and the sizes of a model that was cut from a smaller one, told of the dense one."""
    plan = {name: [before.plan[name][i] for i in kept] for name, kept in result.plan.items()}
    dense = {block.name: block for block in blocks}
    rows = [
        replace(row, total=dense[row.name].num_units, total_groups=dense[row.name].num_groups)
        if row.name in dense
        else row
        for row in result.report.blocks
    ]
    return replace(result, plan=plan, report=replace(result.report, blocks=rows))
