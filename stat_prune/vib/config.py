"""How to train masks and weights, in one object."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from stat_prune.errors import SettingsError
from stat_prune.settings.arguments import check_number, flag, integer
from stat_prune.settings.fields import Config

Mode = Literal["full", "fast", "masks"]
#: What the columns of the consumers that stay become; see `VIBConfig.folding`.
Folding = Literal["means", "corrected-means", "corrected"]


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

    data_fraction: float = 1.0
    train_weights: bool = True
    mask_epochs: float = 4.0
    finetune_epochs: float = 4.0
    mask_steps: int | None = None
    finetune_steps: int | None = None
    least_mask_steps: int = 100
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    dropout: bool = False
    mask_learning_rate: float = 0.05
    multiplier_learning_rate: float = 0.1
    initial_mean: float = 1.0
    initial_log_variance: float = -9.0
    initial_spread: float = 0.01
    sublayers: bool = False
    kl_weight: float = 0.1
    cost_slope: float = 1.0
    target_warmup: float = 0.25
    task_weight: float = 1.0
    logit_weight: float | None = None
    hidden_weight: float = 0.9
    temperature: float = 2.0
    layer_map: tuple[tuple[int, int], ...] | None = None
    folding: Folding = "corrected-means"
    correction_samples: int = 512
    save_steps: int = 100

    def __post_init__(self) -> None:
        if self.layer_map is not None:  # JSON has lists
            object.__setattr__(self, "layer_map", _pairs("layer_map", self.layer_map))
        self._check_kinds()
        self._check_counts()
        for name in ("data_fraction", "target_warmup"):
            if not 0 < getattr(self, name) <= 1:
                raise SettingsError(f"`{name}` must lie in (0, 1], got {getattr(self, name)!r}.")
        for name in ("learning_rate", "mask_learning_rate", "temperature", "cost_slope"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"`{name}` must be positive, got {getattr(self, name)!r}.")
        for name in ("task_weight", "logit_weight", "hidden_weight", "kl_weight"):
            weight = getattr(self, name)
            if weight is not None and not weight >= 0:
                raise SettingsError(f"`{name}` must not be negative, got {weight!r}.")
        if self.task_weight == self.logit_weight == self.hidden_weight == 0:
            raise SettingsError("All weights of the loss are 0. Give the model something to learn.")
        if not isinstance(self.folding, str) or self.folding not in get_args(Folding):
            raise SettingsError(
                f"`folding` must be one of {', '.join(get_args(Folding))}, got {self.folding!r}."
            )
        if self.folding == "corrected" and self.train_weights:
            raise SettingsError(
                "folding='corrected' is of a model whose weights were not trained with the masks. "
                "Pass train_weights=False, or folding='corrected-means'."
            )

    def _check_kinds(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                flag(field.name, value)
            elif field.type == "float" or (field.type == "float | None" and value is not None):
                check_number(field.name, value)

    def _check_counts(self) -> None:
        for name in ("batch_size", "least_mask_steps", "correction_samples", "save_steps"):
            integer(name, getattr(self, name), 1)
        for name, least in (("mask_steps", 1), ("finetune_steps", 0)):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), least)
        for name in ("mask_epochs", "finetune_epochs"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"`{name}` must be positive, got {getattr(self, name)!r}.")

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
