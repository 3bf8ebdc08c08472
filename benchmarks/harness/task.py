"""What is pruned, on which data, and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.settings.targets import Target

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Task:
    """A model, its calibration data and its score.

    Attributes
    ----------
    metrics : tuple of str
        Names of the scores that have a table, the one that is quoted first.
    num_calibration_samples : int
    budgets : tuple of float
        Kept fractions that are measured by default.
    target : callable
        From a kept fraction to a target.
    load : callable
        The dense model and its tokenizer.
    calibration : callable
        Unlabelled examples, or records with a label beside them, which only the methods that are
        defined with labels look at.
    score : callable
        Every score of a model with its tokenizer, by name.
    conditions : mapping
        JSON values: all that a score depends on beside method, budget and seed.
    higher_is_better : bool
    unseen : callable, optional
        Unlabelled examples of the kind that is scored, on which outputs are compared with the dense
        model's. By default the calibration data.
    """

    metrics: tuple[str, ...]
    num_calibration_samples: int
    budgets: tuple[float, ...]
    target: Callable[[float], Target]
    load: Callable[[], Loaded]
    calibration: Callable[[], Any]
    score: Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, float]]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True
    unseen: Callable[[], Any] | None = None

    @property
    def metric(self) -> str:
        """The score that is quoted first."""
        return self.metrics[0]
