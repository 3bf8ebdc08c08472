"""One pruning run: the model, its blocks, the data, the clock and the progress bar."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.batching import masks_in
from stat_prune.data.calibration import CalibrationSet
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.errors import CalibrationWarning, ModelError
from stat_prune.exporting.serving import check_servable
from stat_prune.families import find_blocks
from stat_prune.inferring import describe
from stat_prune.machine.clock import Stopwatch
from stat_prune.machine.distributed import barrier, check_same, rank
from stat_prune.machine.progress import progress_bar
from stat_prune.measuring.head_states import head_moments
from stat_prune.measuring.objectives import OF_BASE_MODEL, objective_named
from stat_prune.measuring.token_counts import token_counts
from stat_prune.model.blocks import KINDS, Block
from stat_prune.model.dispatched import input_device, is_dispatched, stored_tensors
from stat_prune.model.ignoring import without_ignored
from stat_prune.model.model_checks import (
    check_model,
    check_one_text_at_a_time,
    check_weights_are_finite,
    check_weights_of_their_own,
)
from stat_prune.model.one_run import model_of_run
from stat_prune.model.running import Batch
from stat_prune.model.tensors.ordinary_tensors import outside_modes_of_caller
from stat_prune.pipeline.earlier_runs import earlier_runs
from stat_prune.pipeline.solving_again.second_pass import with_held_out
from stat_prune.settings.settings import Settings, kinds_left_alone
from stat_prune.settings.targets import Target
from stat_prune.surgery.config_checks import of_sizes_that_configs_say
from stat_prune.surgery.embeddings import TableFactors, decompose_head, decompose_table
from stat_prune.surgery.token_tables import find_head, find_table, own_head

Item = TypeVar("Item")

#: Values that a probe averages over, the fewest sequences that they come from, and the fewest
#: tokens that a sequence is cut to.
PROBE_POSITIONS = 640
MIN_PROBE_SEQUENCES = 10
MIN_PROBE_LENGTH = 64


@dataclass
class Run:
    """What every stage of the pipeline needs.

    Attributes
    ----------
    model : PreTrainedModel
        The dense model, or a copy that shares its weights; no stage changes it for good.
    blocks : list of Block
        To be pruned.
    untouched : list of Block
        Ignored by the user; they count in what a fraction is of.
    calibration : CalibrationSet
    settings : Settings
    tokenizer : PreTrainedTokenizerBase or None
    stopwatch : Stopwatch
    bar : tqdm or LogLines
        The progress bar.
    factored : dict
        By the fractions of embeddings and head, the copy with such factors that was made last.
    earlier : list of dict
        As in the report: runs that made the model.
    moments_at_head : Tensor of shape (hidden, hidden), float64, or None
        Second moments of what a head of its own reads, where they are known before it is factored.
    """

    model: PreTrainedModel
    blocks: list[Block]
    untouched: list[Block]
    calibration: CalibrationSet
    settings: Settings
    tokenizer: PreTrainedTokenizerBase | None
    stopwatch: Stopwatch
    bar: Any
    factored: dict[tuple[float, float], PreTrainedModel] = field(default_factory=dict)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    moments_at_head: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is, or, where its weights are read layer by layer, where they go."""
        where = input_device(self.model)
        return torch.device(self.settings.device or "cpu") if where.type == "meta" else where

    @cached_property
    def decomposed_table(self) -> TableFactors:
        """Factors of every rank of the token embeddings, by the tokens of the calibration set."""
        counts = token_counts(self._counted, find_table(self.model).num_rows)
        return decompose_table(self.model, counts)

    @cached_property
    def decomposed_head(self) -> TableFactors:
        """Factors of every rank of a head of its own, by the states that it reads, in one pass."""
        batches = self.calibration.batches
        counts = token_counts(self._counted, find_head(self.model).num_rows)
        moments = self.moments_at_head
        if moments is None:
            with self.stage("collect at the head"):
                moments = head_moments(self.model, own_head(self.model), self.tracked(batches))
        return decompose_head(self.model, counts, moments)

    def forget_tables(self) -> None:
        """Give up what is remembered of embeddings and head, with their weights."""
        for name in ("decomposed_table", "decomposed_head"):
            self.__dict__.pop(name, None)
        self.factored = {}

    @property
    def _counted(self) -> Sequence[Batch]:
        """What tokens are counted in.

        Where factors and blocks are judged on a part of the calibration set, the tokens of that
        part are not to be exact because they are in it.
        """
        if not self.blocks:
            return self.calibration.batches
        solved_on, _ = with_held_out(self.calibration, seed=self.settings.seed)
        return solved_on.batches

    @property
    def masks(self) -> list[str]:
        """What says which tokens are real, for each of the stacks of layers that read their own."""
        return list(dict.fromkeys(block.mask for block in [*self.blocks, *self.untouched]))

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage and show it."""
        self.bar.set_description(name)
        return self.stopwatch.stage(name)

    def tracked(self, items: Sequence[Item]) -> Iterator[Item]:
        """Go through items with a step of the progress bar for each."""
        self.expect(len(items))
        for item in items:
            yield item
            self.advance()

    def expect(self, steps: int) -> None:
        """Make the progress bar longer."""
        self.bar.total = (self.bar.total or 0) + steps
        self.bar.refresh()

    def advance(self, _what: str = "") -> None:
        """One step of the progress bar."""
        self.bar.update()

    def probe_batches(self, positions_per_sequence: float) -> list[Batch]:
        """A few calibration sequences to measure probes on, spread over the lengths.

        As many as give `PROBE_POSITIONS` values to average, for heads with one value a sequence
        too; but no more than keep all probes together to about one pass over the calibration set
        (half of the layers, on average, are computed for a probe), and no fewer than
        `MIN_PROBE_SEQUENCES`. Where texts have a value a token, long ones are cut (`probe_length`).
        """
        calibration = self.calibration
        count = num_probe_samples(calibration.num_samples, len(self.blocks), positions_per_sequence)
        length, batch_size = None, calibration.batch_size
        first = calibration.batches[0]
        if positions_per_sequence > 1 and masks_in(first) == ["attention_mask"]:
            length = probe_length(calibration.num_tokens, len(self.blocks), count)
            # As many tokens at once as in calibration: the fewer calls, the better.
            batch_size *= max(first["attention_mask"].shape[1] // length, 1)
        subset = calibration.subset(
            count, seed=self.settings.seed, batch_size=batch_size, max_length=length
        )
        return list(subset.batches)


def num_probe_samples(num_samples: int, num_blocks: int, positions_per_sequence: float) -> int:
    """How many of so many calibration sequences each of so many probes is measured on."""
    affordable = 2 * num_samples // num_blocks
    needed = math.ceil(PROBE_POSITIONS / positions_per_sequence)
    return min(max(min(needed, affordable), MIN_PROBE_SEQUENCES), num_samples)


def probe_length(num_tokens: int, num_blocks: int, num_sequences: int) -> int:
    """Tokens of the longest sequence that a probe is measured on.

    All probes together are kept to half a pass over a calibration set of `num_tokens`, so that
    they take no larger share of the time in a deeper model; but no sequence is cut below
    `MIN_PROBE_LENGTH`.
    """
    return max(num_tokens // (num_blocks * num_sequences), MIN_PROBE_LENGTH)


@contextmanager
def start_run(
    model: PreTrainedModel,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Settings,
    targets: Sequence[Target] = (),
    *,
    dispatched: bool = False,
) -> Iterator[Run]:
    """Check model and data, and put a model with these weights where the computation is to be.

    The run's model is the given one only where that is to be cut itself, or is one of accelerate's
    (`dispatched`), which stays where it is; else a copy that shares its weights. Kinds of blocks
    that no target speaks of are ignored; without targets none is.

    Raises
    ------
    StatPruneError
        Before any work, if model or data cannot be used.
    """
    check_model(model, settings.device, dispatched=dispatched)
    itself = settings.inplace or is_dispatched(model)
    with (
        outside_modes_of_caller(),
        model_of_run(model, itself=itself) as own,
        open_run(own, dataset, tokenizer, settings, targets) as run,
    ):
        barrier(lambda: check_weights_are_finite(own, stored_tensors(own)))
        module: nn.Module = own
        home = None if is_dispatched(own) else next(module.parameters()).device
        try:
            if settings.device is not None:
                module.to(settings.device)
            yield run
        finally:
            if home is not None:
                module.to(home)


@contextmanager
def open_run(
    model: PreTrainedModel,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Settings,
    targets: Sequence[Target] = (),
) -> Iterator[Run]:
    """Find the blocks and read the data; the model stays where it is, and may have no weights yet.

    Raises
    ------
    StatPruneError
        Before any work, if model or data cannot be used.
    """
    blocks, untouched = blocks_of(model, settings, targets)
    stopwatch = Stopwatch()
    with stopwatch.stage("read data"):
        calibration = calibration_set_for(
            model,
            dataset,
            tokenizer,
            num_samples=settings.num_calibration_samples,
            num_held_out=settings.num_held_out,
            max_seq_length=settings.max_seq_length,
            batch_size=settings.batch_size,
            seed=settings.seed,
            # Hidden states are of texts as they are, whatever the head.
            mask_fraction=0.0 if leaves_out_head(settings) else settings.mask_fraction,
        )
    check_same("The calibration set", calibration.fingerprint)
    if calibration.held_out is not None:
        check_same("What is held out", calibration.held_out.fingerprint)
    if blocks:
        _warn_if_few_tokens(calibration, blocks)
    with progress_bar(shown=settings.progress and rank() == 0) as bar:
        yield Run(
            model,
            blocks,
            untouched,
            calibration,
            settings,
            tokenizer,
            stopwatch,
            bar,
            earlier=earlier_runs(model),
        )


def blocks_of(
    model: PreTrainedModel, settings: Settings, targets: Sequence[Target] = ()
) -> tuple[list[Block], list[Block]]:
    """Blocks to prune, and those that stay, of a model that may have no weights yet.

    Raises
    ------
    StatPruneError
        If the model cannot be used so.
    """
    describe(model)
    found = find_blocks(model)
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layers to prune: its config says 0. Pass a model with "
            "the transformer itself."
        )
    check_weights_of_their_own(model, found)
    if settings.reads_output and not leaves_out_head(settings):
        check_one_text_at_a_time(model)
    left_alone = kinds_left_alone(settings, targets) if targets else []
    blocks, untouched = _to_prune(found, settings, left_alone)
    check_servable(model, blocks, settings, targets)
    if settings.serve_with == "vllm" and not settings.uniform:
        blocks = of_sizes_that_configs_say(model, blocks, "serve_with='vllm'")
    if settings.uniform:
        blocks = of_sizes_that_configs_say(model, blocks)
    return blocks, untouched


def _to_prune(
    found: list[Block], settings: Settings, left_alone: Sequence[str]
) -> tuple[list[Block], list[Block]]:
    """Blocks to prune, and those that stay."""
    if set(left_alone) == set(KINDS):
        return [], found  # targets are of embeddings alone
    if all(block.fixed or block.kind in left_alone for block in found):
        left_alone = ()  # no block that the target names can be pruned: its own error says why
    return without_ignored(found, [*settings.ignored, *left_alone])


def leaves_out_head(settings: Settings) -> bool:
    """Whether what is to be preserved has no part of the model's head in it."""
    return objective_named(settings.objective) in OF_BASE_MODEL


def _warn_if_few_tokens(calibration: CalibrationSet, blocks: Sequence[Block]) -> None:
    """Warn of the block that reads the fewest tokens for its channels, of its own stack."""
    tokens = calibration.tokens_by_mask
    worst = max(blocks, key=lambda one: one.num_channels / (one.usage * tokens[one.mask]))
    count = tokens[worst.mask]
    if count * worst.usage < worst.num_channels:
        reached = "" if worst.usage == 1 else f", {worst.usage:.3g} of which reach {worst.name}"
        which = f" ({worst.mask})" if len(tokens) > 1 else ""
        warnings.warn(
            f"The calibration set has {count} tokens{which}{reached}, fewer than the "
            f"{worst.num_channels} channels of {worst.name}: the correction fits these tokens "
            "exactly and others less well. Use more examples.",
            CalibrationWarning,
            stacklevel=2,
        )
