"""The methods of `vib.py`, and what they are given."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel

import stat_prune
from glue import glue_task
from harness.sources import find_model
from harness.task import Task
from stat_prune.checkpoints.replacing import REPORT_FILE
from stat_prune.evaluation.glue import GLUE_TASKS, GlueData, evaluate_glue
from stat_prune.evaluation.perplexity import perplexity
from stat_prune.reporting.result import PruningResult
from stat_prune.vib import MODES, VIBConfig, vib_finetune
from tasks import STORIES, TASKS, read_stories

#: A model, how it was made, and what the second stage took.
Result = tuple[PreTrainedModel, dict[str, Any], dict[str, float]]

#: What torch counts on a GPU, under the names that it has on a CPU; shapes come first.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda *shapes, **_: sdpa_flop_count(*shapes[:3])
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}


class Cell:
    """What every method is given.

    Parameters
    ----------
    name : str
        Of the task.
    folder : Path
        For models that several methods start from.
    model : str
    kept : float
        Fraction of the dense model's MACs.
    steps : int
        Of training, in all.
    batch_size : int
    limit : int or None
        Training examples.
    held_out : int
        Training examples that are scored in place of the dev split, and that no method sees.
    seed : int
    fields : mapping of str to Any
        Of the `VIBConfig`, in place of what the method has.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        model: str,
        kept: float,
        steps: int,
        batch_size: int,
        limit: int | None,
        held_out: int,
        seed: int,
        fields: Mapping[str, Any],
    ) -> None:
        self.name, self.folder, self.kept, self.seed = name, folder, kept, seed
        self.steps = steps
        rate = 1e-3 if name == STORIES else 1e-4
        self.fields = {"batch_size": batch_size, "learning_rate": rate, **fields}
        self.task = task_of(name, model)
        self.model, self.tokenizer = self.task.load()
        embeddings: Any = self.model.get_input_embeddings()
        embeddings.weight.requires_grad_(False)
        data = list(self.task.calibration())
        random.Random(seed).shuffle(data)
        self.held, self.data = data[:held_out], data[held_out:][:limit]

    def score(self, model: PreTrainedModel) -> float:
        """Of the dev split, or of what is held out."""
        if not self.held:
            return self.task.score(model, self.tokenizer)[self.task.metric]
        if self.name == STORIES:
            return perplexity(model, self.tokenizer, self.held)[self.task.metric]
        texts = [tuple(row[name] for name in GLUE_TASKS[self.name].columns) for row in self.held]
        held = GlueData(
            [text if len(text) == 2 else text[0] for text in texts],
            np.array([row["label"] for row in self.held]),
        )
        return evaluate_glue(model, self.tokenizer, self.name, held)[self.task.metric]

    @cached_property
    def dense(self) -> float:
        """The dense model's score."""
        return self.score(self.model)

    def pruned(self, kept: float | None = None) -> Result:
        """STAT, without labels or training; pruned once for all methods that start there."""
        return opened(self.pruned_folder(kept))

    def pruned_folder(self, kept: float | None = None, **settings: Any) -> Path:
        """The folder that it is saved in; settings are of ``prune``."""
        fraction = kept or self.kept
        sizes = f"{len(self.data)}-{len(self.held)}-{self.seed}"
        label = "-".join(["stat", *(f"{name}-{value}" for name, value in settings.items())])
        place = self.folder / f"{label}-{self.name}-{fraction:g}-{sizes}"
        if not place.is_dir():
            result = stat_prune.prune(
                self.model,
                self.data,
                target=self.task.target(fraction),
                tokenizer=self.tokenizer,
                num_calibration_samples=self.task.num_calibration_samples,
                seed=self.seed,
                progress=False,
                **settings,
            )
            result.save(place)
        return place

    def finished(self, result: PruningResult | Path, kind: str, steps: int | None = None) -> Result:
        """A finish that reads as many sequences as so many steps do; by default, as all."""
        with counting() as spent:
            done = stat_prune.finish(
                result,
                self.data,
                kind=kind,
                teacher=self.model,
                tokenizer=self.tokenizer,
                num_calibration_samples=(steps or self.steps) * self.fields["batch_size"],
                seed=self.seed,
                progress=False,
            )
        return done.model, done.report.settings, spent

    def finetuned(
        self, start: PreTrainedModel, kept: float, config: VIBConfig, **settings: Any
    ) -> Result:
        """The second stage on a model; what it takes is counted."""
        result, spent = self.finetuned_result(start, kept, config, **settings)
        return result.model, result.report.settings, spent

    def finetuned_result(
        self, start: PreTrainedModel, kept: float, config: VIBConfig, **settings: Any
    ) -> tuple[PruningResult, dict[str, float]]:
        """All of it, for what comes after."""
        dense: Any = self.model
        trained = {name: p.requires_grad for name, p in dense.named_parameters()}
        for name, parameter in start.named_parameters():
            parameter.requires_grad_(trained[name])
        with counting() as spent:
            result = vib_finetune(
                start,
                self.data,
                target=self.task.target(kept),
                mode=replace(config, **self.fields),
                teacher=dense,
                tokenizer=self.tokenizer,
                seed=self.seed,
                **settings,
            )
        return result, spent


def opened(folder: Path) -> Result:
    """What was saved; nothing is trained."""
    settings = json.loads((folder / REPORT_FILE).read_text())["settings"]
    return stat_prune.load(folder), settings, {"flops": 0.0, "cpu_seconds": 0.0}


@contextmanager
def counting() -> Iterator[dict[str, float]]:
    """What is computed meanwhile, once it is."""
    spent: dict[str, float] = {}
    start = time.process_time()
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        yield spent
    spent["flops"] = float(counter.get_total_flops())
    spent["cpu_seconds"] = time.process_time() - start


def task_of(name: str, model: str) -> Task:
    """A task of GLUE, or the stories, of which all are trained on that are not scored."""
    if name == STORIES:
        return replace(
            TASKS[name](), calibration=lambda: [*read_stories()[:200], *read_stories()[400:]]
        )
    scale = 0.2 if name == "stsb" else 1.0  # the checkpoint predicts a fifth of the score
    return glue_task(name, model=find_model(model), label_scale=scale)


def split(cell: Cell, mode: str, **fields: Any) -> VIBConfig:
    """Half of the steps for the masks, half for the pruned model."""
    half = cell.steps // 2
    return replace(MODES[mode], mask_steps=half, finetune_steps=half, **fields)


def masks_alone(cell: Cell, **fields: Any) -> tuple[PruningResult, dict[str, float]]:
    """A sixteenth of the steps, and no labels."""
    config = replace(MODES["masks"], mask_steps=sixteenth(cell), **fields)
    return cell.finetuned_result(cell.model, cell.kept, config, labels=False)


def sixteenth(cell: Cell) -> int:
    """Of the steps; one at least."""
    return max(cell.steps // 16, 1)


def from_masks(cell: Cell, **fields: Any) -> Result:
    """What masks alone leave."""
    result, spent = masks_alone(cell, **fields)
    return result.model, result.report.settings, spent


def masks_finished(cell: Cell, finish: str) -> Result:
    """Masks alone, and a finish of what is left that reads as much."""
    result, masks = masks_alone(cell)
    model, settings, spent = cell.finished(result, finish, sixteenth(cell))
    return model, settings, {name: spent[name] + masks[name] for name in spent}


def without_labels(cell: Cell) -> Result:
    """All steps for all weights of what STAT left, with nothing to learn from but the teacher."""
    config = replace(MODES["full"], finetune_steps=cell.steps)
    return cell.finetuned(cell.pruned()[0], 1.0, config, labels=False)


def from_stat(cell: Cell, **fields: Any) -> Result:
    """All steps for the model that STAT pruned to the target."""
    config = replace(MODES["full"], finetune_steps=cell.steps, **fields)
    return cell.finetuned(cell.pruned()[0], 1.0, config)


def from_halfway(cell: Cell) -> Result:
    """STAT removes half of what is to go, masks the other half."""
    halfway = (1 + cell.kept) / 2
    start = cell.pruned(halfway)[0]
    return cell.finetuned(start, cell.kept / halfway, split(cell, "full"))


def vib(cell: Cell, mode: str, **fields: Any) -> Result:
    """Masks, cut and training from the dense model."""
    return cell.finetuned(cell.model, cell.kept, split(cell, mode, **fields))


METHODS: dict[str, Callable[[Cell], Result]] = {
    "stat": lambda cell: cell.pruned(),
    "stat, two passes": lambda cell: opened(cell.pruned_folder(passes=2)),
    "K-prune with the sizes of stat": lambda cell: opened(
        cell.pruned_folder(method="kprune", budget="searched")
    ),
    "stat, then scales": lambda cell: cell.finished(cell.pruned_folder(), "scales"),
    "stat, then low-rank updates": lambda cell: cell.finished(cell.pruned_folder(), "lora"),
    "stat, then weights": lambda cell: cell.finished(cell.pruned_folder(), "weights"),
    "stat, then distillation without labels": without_labels,
    "stat, then fine-tuning": lambda cell: from_stat(cell, logit_weight=0.0, hidden_weight=0.0),
    "stat, then distillation": from_stat,
    "stat halfway, then vib": from_halfway,
    "vib, full": lambda cell: vib(cell, "full"),
    "vib, full, uncorrected": lambda cell: vib(cell, "full", folding="means"),
    "vib, full, sublayers": lambda cell: vib(cell, "full", sublayers=True),
    "vib, fast": lambda cell: vib(cell, "fast"),
    "vib, masks": from_masks,
    "vib, masks, then scales": lambda cell: masks_finished(cell, "scales"),
    "vib, masks, then weights": lambda cell: masks_finished(cell, "weights"),
    "vib, masks, uncorrected": lambda cell: from_masks(cell, folding="means"),
}
