"""How to train masks and weights, in one object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from stat_prune.errors import SettingsError
from stat_prune.settings.arguments import flag, integer
from stat_prune.settings.fields import Config, Integer, Number, OneOf, checked

Mode = Literal["full", "fast", "masks"]
#: What the columns of the consumers that stay become; see `VIBConfig.folding`.
Folding = Literal["means", "corrected-means", "corrected"]

_POSITIVE = Number(zero=False)


@dataclass(frozen=True)
class VIBConfig(Config):
    """Hyperparameters of `vib_finetune`.

    Attributes
    ----------
    data_fraction : float
        Of the training set that is used, drawn evenly over the lengths.
    train_weights : bool
        Whether the weights are trained, with the masks and after the cut. If not, only masks are,
        and there is no training after the cut.
    mask_epochs, finetune_epochs : float
        Passes over the data with masks, and over the data with the pruned model.
    mask_steps, finetune_steps : int, optional
        Steps in their place; 0 finetune_steps leaves that stage out.
    least_mask_steps : int
        Steps with masks where `mask_epochs` comes to fewer, as on few data: at the masks' learning
        rate it takes about so many until the expected cost can reach a target.
    batch_size : int
    learning_rate, weight_decay : float
        Of AdamW, for the weights; the rate falls linearly to 0.
    dropout : bool
        Whether the model's dropout is on in training. A model that has lost most of its units
        underfits rather than overfits, and cannot match a teacher with what dropout takes.
    mask_learning_rate, multiplier_learning_rate : float
        Constant.
    initial_mean, initial_log_variance, initial_spread : float
        Means and log variances of the masks start at normal draws about these, of this spread.
    sublayers : bool
        Whether there is one mask more over each block as a whole, attention or feed-forward
        network, which may then leave altogether. Off: in short runs it cost accuracy.
    kl_weight : float
        Of the mean over masks of ``KL``, in nats.
    cost_slope : float
        The expected cost counts a unit by ``sigmoid(-cost_slope * log alpha)``.
    target_warmup : float
        Part of the steps with masks over which the budget falls linearly from the whole to the
        target.
    task_weight, logit_weight, hidden_weight : float
        Of the task loss, of the divergence of the logits and of the relative squared distance of
        hidden states. The default of `logit_weight` is 0.1 as in CoFi, and 1 for language models.
    temperature : float
        Divides the logits that are compared.
    layer_map : tuple of pairs of int, optional
        Layers of the student and of the teacher whose outputs are compared. Default: those at
        equal depth.
    folding : {"means", "corrected-means", "corrected"}
        What the columns of the consumers that stay become: themselves times the means of their
        masks; that, and the least-squares correction for what the mean masks leave of the others;
        or, with weights that are not trained, the correction of the dense model without the means
        (STAT).
    correction_samples : int
        Sequences of the training set from which that correction and the errors of the report come.
    save_steps : int
        Steps between checkpoints, where there is a folder for them.
    """

    data_fraction: float = checked(1.0, Number(most=1, zero=False))
    train_weights: bool = checked(True, flag)
    mask_epochs: float = checked(4.0, _POSITIVE)
    finetune_epochs: float = checked(4.0, _POSITIVE)
    mask_steps: int | None = checked(None, Integer(optional=True))
    finetune_steps: int | None = checked(None, Integer(0, optional=True))
    least_mask_steps: int = checked(100, Integer())
    batch_size: int = checked(32, Integer())
    learning_rate: float = checked(5e-5, _POSITIVE)
    weight_decay: float = checked(0.01, Number(signed=True))
    dropout: bool = checked(False, flag)
    mask_learning_rate: float = checked(0.05, _POSITIVE)
    multiplier_learning_rate: float = checked(0.1, Number(signed=True))
    initial_mean: float = checked(1.0, Number(signed=True))
    initial_log_variance: float = checked(-9.0, Number(signed=True))
    initial_spread: float = checked(0.01, Number(signed=True))
    sublayers: bool = checked(False, flag)
    kl_weight: float = checked(0.1, Number())
    cost_slope: float = checked(1.0, _POSITIVE)
    target_warmup: float = checked(0.25, Number(most=1, zero=False))
    task_weight: float = checked(1.0, Number())
    logit_weight: float | None = checked(None, Number(optional=True))
    hidden_weight: float = checked(0.9, Number())
    temperature: float = checked(2.0, _POSITIVE)
    layer_map: tuple[tuple[int, int], ...] | None = None
    folding: Folding = checked("corrected-means", OneOf(get_args(Folding)))
    correction_samples: int = checked(512, Integer())
    save_steps: int = checked(100, Integer())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_map is not None:  # JSON has lists
            self._take("layer_map", _pairs("layer_map", self.layer_map))
        if self.task_weight == self.logit_weight == self.hidden_weight == 0:
            raise SettingsError("All weights of the loss are 0. Give the model something to learn.")
        if self.folding == "corrected" and self.train_weights:
            raise SettingsError(
                "folding='corrected' is of a model whose weights were not trained with the masks. "
                "Pass train_weights=False, or folding='corrected-means'."
            )

    def resolved(self, *, language_model: bool) -> VIBConfig:
        """With the default of `logit_weight` for the kind of model, where none is given."""
        if self.logit_weight is not None:
            return self
        return replace(self, logit_weight=1.0 if language_model else 0.1)

    @property
    def finetunes(self) -> bool:
        """Whether the pruned model is trained."""
        return self.train_weights and self.finetune_steps != 0

    @property
    def num_examples(self) -> int:
        """As many as the steps can see, if they say so; else more than any data set has."""
        steps = [self.mask_steps, self.finetune_steps if self.finetunes else 0]
        if self.data_fraction < 1 or None in steps:
            return 2**62
        seen = max(step for step in steps if step is not None) * self.batch_size
        return max(seen, self.correction_samples)


def _pairs(name: str, value: Any) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((integer(name, a, 0), integer(name, b, 0)) for a, b in value)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"`{name}` must be pairs of layers, the student's and the teacher's, got {value!r}."
        ) from error


_FULL = VIBConfig()

#: VTrans, Fast-VTrans and Faster-VTrans.
MODES: dict[str, VIBConfig] = {
    "full": _FULL,
    "fast": replace(_FULL, data_fraction=0.03),
    "masks": replace(_FULL, train_weights=False, mask_epochs=0.5, folding="corrected"),
}


def config_named(mode: str | VIBConfig) -> VIBConfig:
    """The config of a mode; a `VIBConfig` is returned as it is.

    Raises
    ------
    SettingsError
        If the name is unknown.
    """
    if isinstance(mode, VIBConfig):
        return mode
    if not isinstance(mode, str) or mode not in MODES:
        raise SettingsError(
            f"Unknown mode {mode!r}. Known: {', '.join(MODES)}, or a stat_prune.vib.VIBConfig(...)."
        )
    return MODES[mode]
