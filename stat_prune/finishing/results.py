"""`finish`: a pruned model fitted to the dense model's outputs."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.pretrained import given_tokenizer
from stat_prune.data.calibration import CalibrationSet
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.errors import DataError, ModelError, SettingsError
from stat_prune.finishing.fitting import PASSES, check_gradient, fit, num_steps
from stat_prune.finishing.opening import dense_model, objective_of, opened
from stat_prune.machine.distributed import broadcast
from stat_prune.measuring.distillation import check_teacher
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sentence_embeddings import settings_inside
from stat_prune.model.dispatched import is_dispatched, shared_copy
from stat_prune.model.running import Objective
from stat_prune.model.whole_encoders import encoder_kind, transformer_of
from stat_prune.pipeline.run import Run, leaves_out_head, start_run
from stat_prune.reporting.finish_report import Finish
from stat_prune.reporting.result import PrunedCheckpoint, PruningResult
from stat_prune.settings.fields import plain
from stat_prune.settings.methods import FINISHES, ObjectiveName
from stat_prune.settings.options import MASK_FRACTION
from stat_prune.settings.settings import HELD_OUT_PART, Settings

#: Sequences that are read for each of the calibration set, others where there are any.
SEQUENCES = 8

#: Sequences that a fit is judged on, at most.
MAX_HELD_OUT = 256


def finish(
    result: PruningResult | PrunedCheckpoint | str | os.PathLike[str],
    dataset: Any,
    *,
    kind: str = "scales",
    teacher: PreTrainedModel | nn.Module | str | os.PathLike[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    num_calibration_samples: int = 4096,
    max_seq_length: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    mask_fraction: float = MASK_FRACTION,
    device: str | torch.device | None = None,
    objective: ObjectiveName | Objective | None = None,
    progress: bool = True,
) -> PruningResult:
    """Fit a few numbers of a pruned model, or its weights, to the dense model's outputs; no labels.

    A scale for every channel that is left, biases and norms are fitted by a short distillation and
    folded into the weights, so that the result has the shapes of the model given, which is left as
    it is. The numbers that do best on examples held out are taken; where none does better than the
    start, that is.

    Parameters
    ----------
    result : PruningResult, PrunedCheckpoint or path
        Of `stat_prune.prune`, `prune_family`, `prune_checkpoint` or `stat_prune.vib.vib_finetune`;
        or the folder that one was saved in. A model of sentence-transformers is finished whole: its
        transformer is fitted, and the result is one of the same class.
    dataset : object
        Unlabelled examples, as for `stat_prune.prune`. The more, the better.
    kind : {"scales", "lora", "weights"}
        ``"lora"``: updates of low rank to the layers' weights in place of the scales; more numbers,
        for models that have lost much and examples that are many. ``"weights"``: those weights
        themselves, which is distillation, for examples by the ten thousand.
    teacher : PreTrainedModel or path, optional
        The dense model, also one of sentence-transformers, its folder, or its name on the Hub.
        Default: what `result` says that it came from, loaded again.
    tokenizer : PreTrainedTokenizerBase or path, optional
        Default: that of the result.
    num_calibration_samples : int
        Sequences to read. Where there are fewer examples they are read several times, five at most.
        An eighth as many besides, 256 at most, is held out.
    objective : {"logits", "hidden-states", "pooled"} or callable, optional
        As for `stat_prune.prune`. Default: that of the run.
    max_seq_length, batch_size, seed, mask_fraction, device, progress
        As for `stat_prune.prune`; `batch_size` is of the sequences held out.

    Returns
    -------
    PruningResult
        Its report has a `finish`.

    Raises
    ------
    StatPruneError
        `SettingsError` where the dense model is not known or has another head, where the run's
        objective was a function, and for what is no result; `ModelError` for models with
        ``device_map``; `LoadError` for what cannot be loaded; `DataError` for fewer than two
        examples.
    """
    if kind not in FINISHES:
        raise SettingsError(f"`kind` must be one of {', '.join(FINISHES)}; got {kind!r}.")
    settings = Settings(
        num_calibration_samples=num_calibration_samples,
        max_seq_length=max_seq_length,
        batch_size=batch_size,
        seed=seed,
        mask_fraction=mask_fraction,
        device=device,
        objective=objective,
        finish=kind,
        progress=progress,
    )
    begun = opened(result, objective)
    dense = dense_model(begun, teacher)
    tokenizer = begun.tokenizer if tokenizer is None else given_tokenizer(tokenizer)
    wholes = (one for one in (begun.model, teacher) if encoder_kind(one) is not None)
    settings = _settings_for(begun, next(wholes, None), settings)
    pruned = transformer_of(begun.model)
    known = dataclasses.replace(
        begun, tokenizer=tokenizer, source=begun.source or dense.name_or_path or None, run=None
    )
    with start_run(dense, dataset, tokenizer, settings) as run:
        check_finish(run)
        check_teacher(pruned, dense)
        done = _fitted(dataclasses.replace(known, model=pruned), run)
    return done if pruned is begun.model else done.in_place_of(begun)


def _fitted(result: PruningResult, run: Run) -> PruningResult:
    """With a copy of its model that is fitted to the run's on the run's examples."""
    examples = _split(run.calibration, run.settings.seed)
    model: Any = copy.deepcopy(result.model)
    home = next(result.model.parameters()).device
    finishing = Finishing(run, run.model, examples, run.settings.num_calibration_samples)
    changed, found = finishing.fit(model.to(run.device))
    return with_finish(dataclasses.replace(result, model=model.to(home)), changed, found, run)


def _settings_for(begun: PruningResult, whole: Any, settings: Settings) -> Settings:
    """With the run's objective, where no other is asked for; `whole` as `objective_of` has it."""
    objective = objective_of(begun, whole, settings.objective)
    if whole is None:
        return dataclasses.replace(settings, objective=objective)
    return dataclasses.replace(settings, **settings_inside(whole, objective))


def check_finish(run: Run) -> None:
    """Refuse models that cannot be fitted, and objectives to fit to, before any work.

    Raises
    ------
    ModelError, SettingsError
    """
    if is_dispatched(run.model):
        raise ModelError(
            f"A finish computes gradients of {type(run.model).__name__} on one device, but it was "
            "loaded with device_map or offloaded. Leave finish out, save the result, and pass its "
            "folder and the dense model, both loaded without device_map, to stat_prune.finish."
        )
    if callable(run.settings.objective):
        check_gradient(run.model, run.settings.objective, run.calibration.batches[0])


def fitting_set(run: Run, dataset: Any) -> CalibrationSet:
    """What a run's results are fitted on, and sequences held out.

    More of the data set than the calibration set is, as far as there is more; of what can be read
    only once, the calibration set itself.

    Raises
    ------
    DataError
    """
    settings = run.settings
    if isinstance(dataset, Iterator):
        return _split(run.calibration, settings.seed)
    count = SEQUENCES * settings.num_calibration_samples
    with run.stage("read data"):
        examples = calibration_set_for(
            run.model,
            dataset,
            run.tokenizer,
            num_samples=count,
            num_held_out=count // HELD_OUT_PART,
            max_seq_length=settings.max_seq_length,
            batch_size=settings.batch_size,
            seed=settings.seed,
            mask_fraction=0.0 if leaves_out_head(settings) else settings.mask_fraction,
        )
    return _split(examples, settings.seed)


def _split(examples: CalibrationSet, seed: int) -> CalibrationSet:
    """With sequences held out, not more of them than judge well."""
    held_out = examples.held_out
    if held_out is None:
        if examples.num_samples < 2:
            raise DataError(
                "A finish is judged on examples held out, and there is one in all. Pass a few "
                "hundred, or leave finish out."
            )
        count = max(examples.num_samples // HELD_OUT_PART, 1)
        examples, held_out = examples.split(count, seed=seed)
    return dataclasses.replace(examples, held_out=held_out.subset(MAX_HELD_OUT, seed=seed))


@dataclasses.dataclass(frozen=True)
class Finishing:
    """How the results of a run are finished.

    Attributes
    ----------
    run : Run
    dense : PreTrainedModel
        As it was before any cut.
    examples : CalibrationSet
        To fit on, with sequences held out.
    num_sequences : int
        To read; those that are read again are counted again.
    """

    run: Run
    dense: PreTrainedModel
    examples: CalibrationSet
    num_sequences: int

    @classmethod
    def of(cls, run: Run, dataset: Any) -> Finishing | None:
        """Where the run's settings ask for it: all that it needs, read and checked before any work.

        Raises
        ------
        ModelError, DataError
        """
        settings = run.settings
        if settings.finish is None:
            return None
        check_finish(run)
        examples = fitting_set(run, dataset)
        # What is cut in place loses layers; a copy shares them with it and takes no memory.
        dense = shared_copy(run.model) if settings.inplace else run.model
        return cls(run, dense, examples, SEQUENCES * settings.num_calibration_samples)

    def fit(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], Finish]:
        """The weights of a pruned model that change, and how it went."""
        run, settings = self.run, self.run.settings
        count = min(self.num_sequences, PASSES * self.examples.num_samples)
        with run.stage("finish"):
            run.expect(num_steps(count, self.examples.num_samples))
            return broadcast(
                lambda: fit(
                    model,
                    self.dense,
                    [*run.blocks, *run.untouched],
                    self.examples,
                    objective_named(settings.objective),
                    kind=settings.finish or FINISHES[0],
                    seed=settings.seed,
                    num_sequences=count,
                    advance=run.advance,
                )
            )


def with_finish(
    result: PruningResult, changed: dict[str, Tensor], found: Finish, run: Run
) -> PruningResult:
    """The result with these weights, written into its model, and the account of them."""
    parameters = dict(result.model.named_parameters())
    with torch.no_grad():
        for name, value in changed.items():
            parameters[name].copy_(value)
    before = result.report
    seconds = before.seconds.get("finish", 0.0) + run.stopwatch.seconds["finish"]
    report = dataclasses.replace(
        before,
        finish=dataclasses.replace(found, objective=plain(run.settings.objective)),
        earlier_finishes=before.finishes,
        seconds=before.seconds | {"finish": seconds},
        settings=before.settings | {"finish": found.kind},
    )
    return dataclasses.replace(result, report=report)
