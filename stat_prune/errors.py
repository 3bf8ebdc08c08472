"""The exceptions and warnings of stat_prune; each message names a cause and a remedy."""

from __future__ import annotations

from typing import Any


class StatPruneError(Exception):
    """Base class of every error that stat_prune raises on purpose."""


class DataError(StatPruneError, ValueError):
    """The calibration set cannot be used: empty, only padding, no tokenizer, wrong vocabulary."""


class ModelError(StatPruneError, ValueError):
    """The model cannot be used as it is: quantized, sharded or wrapped."""


class UnsupportedArchitectureError(ModelError):
    """No description of this model's blocks exists or holds, and none could be inferred."""


class SettingsError(StatPruneError, ValueError):
    """An argument of `prune` is malformed, or does not go with another."""


class TargetError(StatPruneError, ValueError):
    """The target is malformed, or lies below what one head and one neuron a block allow."""


class NonFiniteActivationsError(StatPruneError, ArithmeticError):
    """NaN or Inf in the input of a consumer; the message names the block and the batch."""


class NonFiniteWeightsError(ModelError, ArithmeticError):
    """NaN or Inf in the weights of a model; the message names the weights."""


class NonFiniteOutputsError(StatPruneError, ArithmeticError):
    """NaN or Inf in what a model returns; the message names the output."""


class DistributedError(StatPruneError, RuntimeError):
    """Processes of one run have read different things, or one of them failed."""


class NonFiniteLossError(StatPruneError, ArithmeticError):
    """NaN or Inf in a term of a training loss; the message names the term and the step."""


class SaveError(StatPruneError, OSError):
    """Saving failed (directory exists, disk full, no permission); nothing was replaced.

    Attributes
    ----------
    result : PruningResult or None
        Where `prune` had a result and could not save it.
    """

    def __init__(self, *args: object, result: Any = None) -> None:
        super().__init__(*args)
        self.result = result


class LoadError(StatPruneError, OSError):
    """A folder is not a readable pruned checkpoint."""


class InferredArchitectureWarning(UserWarning):
    """The blocks of a model were inferred, as its family is not registered."""


class GenerationWarning(UserWarning):
    """What the model's generation goes by has left with some heads."""


class LatencyWarning(UserWarning):
    """The time that a pruned model takes is not the one asked for."""


class UniformSizesWarning(UserWarning):
    """With `uniform=True`, the model's config takes only some numbers of heads."""


class ModelWarning(UserWarning):
    """What is around a pruned model is not saved as something that opens, or not preserved."""


class LeftBehindWarning(UserWarning):
    """Something that lay beside the dense model's weights does not come along."""


class CalibrationWarning(UserWarning):
    """The calibration set is usable but weak, for instance fewer tokens than channels."""
