"""Hugging Face's Trainer with the objective of this package, its optimizer and its progress bar."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from stat_prune.data.batching import row_length
from stat_prune.data.training_data import BatchesOfOneLength, TrainingSet
from stat_prune.errors import NonFiniteLossError
from stat_prune.model.running import Batch
from stat_prune.pipeline.run import Run
from stat_prune.vib.config import VIBConfig
from stat_prune.vib.mask_cost import Lagrangian
from stat_prune.vib.masks import MASKS, VIBMask


class Terms(Protocol):
    """What can be minimised."""

    def terms(self, model: PreTrainedModel, batch: Batch, step: int) -> dict[str, Tensor]:
        """Terms of the loss, weighted, by name."""
        ...

    def progress(self) -> dict[str, float]:
        """What to show beside the loss."""
        ...


@dataclass(frozen=True)
class Stage:
    """One round of training.

    Attributes
    ----------
    name : str
    steps : int
    folder : Path or None
        For checkpoints, from the last of which training goes on; None for none.
    max_grad_norm : float
        0 for no clipping.
    """

    name: str
    steps: int
    folder: Path | None
    max_grad_norm: float


def num_steps(steps: int | None, epochs: float, data: TrainingSet, batch_size: int) -> int:
    """Steps as given, or those of so many passes over the data."""
    return math.ceil(epochs * math.ceil(len(data) / batch_size)) if steps is None else steps


def train(
    model: PreTrainedModel,
    objective: Terms,
    data: TrainingSet,
    stage: Stage,
    config: VIBConfig,
    run: Run,
) -> None:
    """Train whatever in `model` requires gradients, in place; it is then in evaluation mode.

    Parameters
    ----------
    model : PreTrainedModel
    objective : Terms
    data : TrainingSet
    stage : Stage
    config : VIBConfig
    run : Run
        For its seed, device, clock and progress bar.

    Raises
    ------
    NonFiniteLossError
        At the first NaN or Inf in a term of the loss or in a trained weight. The checkpoints are
        those from before.
    """
    devices = [run.device] if run.device.type == "cuda" else []
    with (
        run.stage(stage.name),
        _folder(stage) as folder,
        torch.random.fork_rng(devices),
    ):
        run.expect(stage.steps)
        trainer = VIBTrainer(
            model=model,
            args=_arguments(stage, folder, config, run),
            train_dataset=data,
            data_collator=data.collate,
        )
        trainer.add_callback(_Progress(run, trainer))
        trainer.remove_callback(PrinterCallback)
        trainer.objective, trainer.config = objective, config
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    model.eval()


@contextmanager
def _folder(stage: Stage) -> Iterator[Path]:
    if stage.folder is not None:
        stage.folder.mkdir(parents=True, exist_ok=True)
        yield stage.folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _arguments(stage: Stage, folder: Path, config: VIBConfig, run: Run) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        max_grad_norm=stage.max_grad_norm,
        seed=run.settings.seed,
        save_strategy="no" if stage.folder is None else "steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=run.device.type == "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # the model is where the run has put it
    return arguments


class VIBTrainer(Trainer):
    """A Trainer that minimises `objective` and watches over it."""

    objective: Terms
    config: VIBConfig
    shown: dict[str, float]

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The sum of the objective's terms."""
        if not self.config.dropout:
            model.eval()
            for module in model.modules():
                if isinstance(module, VIBMask):
                    module.train()
        terms = self.objective.terms(model, inputs, self.state.global_step)
        values = torch.stack([term.float() for term in terms.values()])
        if not bool(values.isfinite().all()):
            wrong = next(name for name, term in terms.items() if not bool(term.isfinite()))
            self._stop(f"The term {wrong!r} of the loss is {float(terms[wrong].detach())}")
        loss = values.sum()
        self.shown = {"loss": float(loss.detach()), **self.objective.progress()}
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchesOfOneLength:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [row_length(row) for row in data.rows]
        return BatchesOfOneLength(lengths, self.args.train_batch_size, self.args.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW: descent for weights and masks, ascent for the multipliers."""
        model, config = model or self.model, self.config
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        weights = [(n, p) for n, p in named if not n.startswith(MASKS)]
        multipliers = [
            p
            for module in model.modules()
            if isinstance(module, Lagrangian)
            for p in module.parameters()
        ]
        ascended = {id(p) for p in multipliers}
        masks = [p for n, p in named if n.startswith(MASKS) and id(p) not in ascended]
        groups = [
            _group([p for _, p in weights if p.ndim > 1], config.learning_rate)
            | {"weight_decay": config.weight_decay},
            _group([p for _, p in weights if p.ndim <= 1], config.learning_rate),
            _group(masks, config.mask_learning_rate),
            _group(multipliers, config.multiplier_learning_rate) | {"maximize": True},
        ]
        self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The rate of the weights falls linearly to 0; that of masks and multipliers stays."""

        def falls(step: int) -> float:
            return max(0.0, 1 - step / num_training_steps)

        rates: list[Callable[[int], float]] = [falls, falls, _stays, _stays]
        chosen = optimizer or self.optimizer
        assert chosen is not None
        self.lr_scheduler = LambdaLR(chosen, rates)
        return self.lr_scheduler

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        assert self.model is not None
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                self._stop(f"{name} has NaN or Inf")
        super()._save_checkpoint(*args, **kwargs)

    def _stop(self, what: str) -> None:
        last = get_last_checkpoint(self.args.output_dir)
        kept = f"The last good checkpoint is {last}. " if last else ""
        raise NonFiniteLossError(
            f"{what} at step {self.state.global_step}. {kept}Lower the learning rates of the "
            "config, or the weight of that term, and train in float32."
        )


def _group(parameters: list[Any], learning_rate: float) -> dict[str, Any]:
    return {"params": parameters, "lr": learning_rate, "weight_decay": 0.0}


def _stays(_step: int) -> float:
    return 1.0


class _Progress(TrainerCallback):
    """A step of the run's progress bar, with loss, expected cost and target."""

    def __init__(self, run: Run, trainer: VIBTrainer) -> None:
        self.run, self.trainer = run, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.run.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shown = {name: f"{value:.3f}" for name, value in self.trainer.shown.items()}
        self.run.bar.set_postfix(shown, refresh=False)
        self.run.advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.run.bar.set_postfix()
