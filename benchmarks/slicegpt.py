"""SliceGPT ("Compress Large Language Models by Deleting Rows and Columns", ICLR 2024).

Ashkboos et al., arXiv:2401.15024. The residual stream is rotated onto the principal components of
the signal at each RMSNorm, which changes nothing (computational invariance), and then all but the
leading components are deleted: the hidden size shrinks, the blocks keep their heads and neurons.
As every norm has a basis of its own, the residual connections carry matrices ``Q_l^T Q_(l+1)``.

A peer for benchmarks only: no stock class has such residual connections, so the models run but
cannot be saved. The residual matrices count against the budget, as the blocks' own weights do;
embeddings and head do not count, as for every other method here. They shrink too, but a head that
shared its weight with the embeddings gets one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slicing import segments_of, sliced_copy
from stat_prune.choosing.budget.costs import full_cost
from stat_prune.errors import SaveError, TargetError, UnsupportedArchitectureError
from stat_prune.families import architecture_of, find_blocks
from stat_prune.families.decoders.llama import LLAMA, QWEN3
from stat_prune.pipeline.accounting import measure, report_of
from stat_prune.pipeline.budgeting.budgets import resolve
from stat_prune.pipeline.reached import check_fraction
from stat_prune.pipeline.run import start_run
from stat_prune.reporting.result import PruningResult
from stat_prune.settings.settings import Settings
from stat_prune.settings.targets import MACs, Target, Tolerance


class SlicedResult(PruningResult):
    """A sliced model and the account of it; it cannot be saved."""

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Raise a `SaveError`."""
        _refuse_to_save()


def slicegpt(
    model: PreTrainedModel,
    dataset: Any,
    *,
    targets: Sequence[Target],
    tokenizer: PreTrainedTokenizerBase | None = None,
    **settings: Any,
) -> list[SlicedResult]:
    """Slice a decoder to several sizes; the given model is left as it is.

    Parameters
    ----------
    model : PreTrainedModel
        Llama, Mistral, Qwen2 or Qwen3 with its language-model head.
    dataset, tokenizer
        As for `stat_prune.prune`.
    targets : sequence of MACs or Parameters
        One a model, of all blocks together. A fraction of 1 slices too: the residual matrices have
        to fit in.
    **settings
        Arguments of `stat_prune.prune` that concern the data: ``num_calibration_samples``,
        ``max_seq_length``, ``batch_size``, ``seed``, ``device``, ``progress``.

    Raises
    ------
    UnsupportedArchitectureError
        If the model is not such a decoder.
    TargetError
        For a `Tolerance`, a fraction by kind, or one that no hidden size meets.
    """
    if not hasattr(model, "lm_head") or architecture_of(model) not in (LLAMA, QWEN3):
        raise UnsupportedArchitectureError(
            "SliceGPT rotates the head too: pass a Llama, Mistral, Qwen2 or Qwen3 with its "
            f"language-model head, such as LlamaForCausalLM, not {type(model).__name__}."
        )
    results = []
    with start_run(model, dataset, tokenizer, Settings(**settings)) as run:
        for target in targets:
            (budget,) = resolve(run, [target])
            seq_length = budget.seq_length
            sizes = _Sizes(run.model, target, seq_length)
            dimension = sizes.largest()
            before = measure(run.model, seq_length)
            with run.stage("rotate and slice"):
                sliced = sliced_copy(run.model, run.calibration.batches, dimension)
            sliced.__class__ = type(
                f"Sliced{type(model).__name__}",
                (type(model),),
                {"save_pretrained": _refuse_to_save},
            )
            after = measure(sliced, seq_length)
            shortcuts = sum(segment.shortcut.weight.numel() for segment in segments_of(sliced))
            after = replace(
                after,
                block_macs=after.block_macs + seq_length * shortcuts,
                block_parameters=after.block_parameters + shortcuts,
            )
            counted = "block_macs" if isinstance(target, MACs) else "block_parameters"
            reached = getattr(after, counted) / getattr(before, counted)
            check_fraction(target, sizes.fraction, reached, [sizes.step(dimension)])
            report = report_of(run, budget, [], before, after)
            report = replace(report, settings={**report.settings, "method": "slicegpt"})
            results.append(SlicedResult(sliced, report, {}, tokenizer))
    return results


class _Sizes:
    """What hidden sizes cost, as fractions of the dense blocks, residual matrices among them."""

    def __init__(self, model: PreTrainedModel, target: Target, seq_length: float) -> None:
        if isinstance(target, Tolerance) or "all" not in target.fractions():
            raise TargetError(
                f"SliceGPT takes one fraction for heads and neurons, got {target!r}: it keeps them "
                "all."
            )
        self.fraction = target.fractions()["all"]
        self._blocks, self._cost = find_blocks(model), target.cost(seq_length)
        self._total = sum(full_cost(block, self._cost) for block in self._blocks)
        self._per_weight = seq_length if isinstance(target, MACs) else 1

    def largest(self) -> int:
        """The largest hidden size that fits."""
        if self._at(1) > self.fraction:
            raise TargetError(
                f"A kept fraction of {self.fraction:g} is below the least that SliceGPT can reach: "
                f"a hidden size of 1 already costs {self._at(1):.4g} of the whole. Ask for more."
            )
        sizes = range(1, self._blocks[0].input_size + 1)
        return max(size for size in sizes if self._at(size) <= self.fraction)

    def step(self, size: int) -> float:
        """By how much the next size costs more."""
        return self._at(size + 1) - self._at(size)

    def _at(self, size: int) -> float:
        narrow = [replace(block, input_size=size, output_size=size) for block in self._blocks]
        own = sum(full_cost(block, self._cost) for block in narrow)
        return (own + self._per_weight * len(self._blocks) * size**2) / self._total


def _refuse_to_save(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise SaveError(
        "A model of SliceGPT cannot be saved: no class of transformers has its residual matrices. "
        "It is here to be measured; prune with stat_prune.prune to get a model to keep."
    )
