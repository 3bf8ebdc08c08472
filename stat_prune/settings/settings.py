"""The arguments of a pruning run, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from stat_prune.errors import SettingsError
from stat_prune.model.blocks import KINDS, Kind
from stat_prune.model.running import Objective
from stat_prune.settings.arguments import (
    check_number,
    entries,
    flag,
    integer,
    seed_of,
    usable_device,
)
from stat_prune.settings.methods import (
    ALLOCATIONS,
    EFFORTS,
    FINISHES,
    OBJECTIVES,
    SERVERS,
    Allocation,
    Baseline,
    Method,
    baseline_named,
    method_named,
)
from stat_prune.settings.targets import Target, checked_target

#: Of the products in the statistics; "auto" is float32 but where that is too coarse.
PRECISIONS = ("auto", "float64", "float32")

#: One more example for so many of the calibration set is held out.
HELD_OUT_PART = 8

#: Fewer sequences tell nothing of two results that are nearly as good.
MIN_HELD_OUT = 8

#: Of the tokens of a text: that of BERT's pre-training (Devlin et al. 2019).
MASK_FRACTION = 0.15

#: llama.cpp quantizes rows in multiples of it: those of the matrices that read neurons.
_ROWS_OF_LLAMA_CPP = 32

#: No layer is as wide, and what is computed with it stays within 64 bits.
_LARGEST_MULTIPLE = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """How to prune; every attribute is documented at `stat_prune.prune`."""

    method: str | Method | Baseline = "stat"
    num_calibration_samples: int = 512
    max_seq_length: int | None = None
    batch_size: int = 32
    seed: int = 0
    mask_fraction: float = MASK_FRACTION
    device: str | torch.device | None = None
    ignore: Iterable[int | str] = ()
    round_to: int = 1
    uniform: bool = False
    remove_blocks: bool = False
    head_dims: bool = False
    objective: str | Objective | None = None
    effort: str = "normal"
    budget: Allocation | None = None
    passes: int | None = None
    precision: str = "auto"
    finish: str | None = None
    serve_with: str | None = None
    inplace: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("num_calibration_samples", "batch_size", "round_to"):
            self._take(name, integer(name, getattr(self, name)))
        integer("round_to", self.round_to, 1, _LARGEST_MULTIPLE)
        if self.max_seq_length is not None:
            self._take("max_seq_length", integer("max_seq_length", self.max_seq_length))
        if self.passes is not None:
            self._take("passes", integer("passes", self.passes, 1, 2))
        self._take("seed", seed_of(self.seed))
        for name in ("uniform", "remove_blocks", "head_dims", "inplace", "progress"):
            self._take(name, flag(name, getattr(self, name)))
        self._take("device", usable_device(self.device))
        self._take("ignore", entries("ignore", self.ignore))
        check_number("mask_fraction", self.mask_fraction)
        if not 0 <= self.mask_fraction <= 1:
            raise SettingsError(f"`mask_fraction` must lie in [0, 1], got {self.mask_fraction!r}.")
        self._take("mask_fraction", float(self.mask_fraction))
        if not isinstance(self.precision, str) or self.precision not in PRECISIONS:
            raise SettingsError(f"`precision` must be one of {PRECISIONS}, got {self.precision!r}.")
        self._check_objective()
        if self.effort not in EFFORTS:
            raise SettingsError(
                f"`effort` must be one of {', '.join(EFFORTS)}; got {self.effort!r}."
            )
        if self.finish is not None and self.finish not in FINISHES:
            raise SettingsError(
                f"`finish` must be one of {', '.join(FINISHES)}, or None; got {self.finish!r}."
            )
        if self.serve_with is not None and self.serve_with not in SERVERS:
            raise SettingsError(
                f"`serve_with` must be one of {', '.join(SERVERS)}, or None; got "
                f"{self.serve_with!r}."
            )
        if self.serve_with == "llama.cpp":
            self._take("round_to", math.lcm(self.round_to, _ROWS_OF_LLAMA_CPP))
        if self.budget is not None and self.budget not in ALLOCATIONS:
            raise SettingsError(
                f"`budget` must be one of {', '.join(ALLOCATIONS)}; got {self.budget!r}."
            )
        if self.baseline is None:
            _ = self.recipe
        elif self.uniform:
            raise SettingsError(f"method={self.method!r} has no uniform mode; use method='stat'.")
        elif self.budget is not None:
            raise SettingsError(
                f"method={self.method!r} spreads its budget itself, got budget={self.budget!r}. "
                "Leave budget out, or use method='stat', 'obs' or another that ranks units."
            )
        if self.head_dims and (self.uniform or self.serve_with or not self._searches):
            raise SettingsError(
                "head_dims=True measures whole pruned models and gives each layer sizes of its "
                f"own, got method={self.method!r}, budget={self.budget!r}, uniform={self.uniform}, "
                f"serve_with={self.serve_with!r}. Use method='stat' with its own budget, and leave "
                "the other two out."
            )
        if self.passes == 2 and not self._solves_correction:
            raise SettingsError(
                f"passes=2 solves the correction of method='stat' and its variants again; "
                f"method={self.method!r} has none. Leave passes out."
            )

    @property
    def baseline(self) -> Baseline | None:
        """A method that is a pipeline of its own; None for one that is made of parts."""
        return baseline_named(self.method)

    @property
    def _solves_correction(self) -> bool:
        return self.baseline is None and self.recipe.corrected

    @property
    def recipe(self) -> Method:
        """The method's parts, with the budget that is asked for; not of a `baseline`.

        Raises
        ------
        SettingsError
            If there is no such method, or it cannot be combined with the budget.
        """
        recipe = method_named(cast("str | Method", self.method))
        if self.budget is None:
            return recipe
        if recipe.heads_only and self.budget != "even":
            raise SettingsError(
                f"method={self.method!r} prices no sizes, got budget={self.budget!r}. Leave it out."
            )
        return replace(recipe, allocation=self.budget)

    @property
    def num_passes(self) -> int:
        """Of the correction, as asked for or as the method says; not of a `baseline`."""
        return self.passes or self.recipe.passes

    @property
    def num_held_out(self) -> int:
        """Examples to draw besides those of the calibration set, to choose with at the end."""
        if not self._searches or self.effort == "fast":
            return 0
        return max(self.num_calibration_samples // HELD_OUT_PART, MIN_HELD_OUT)

    @property
    def _searches(self) -> bool:
        return self.baseline is None and self.recipe.allocation == "searched"

    def _take(self, name: str, value: Any) -> None:
        """Set an attribute to what was meant by it."""
        object.__setattr__(self, name, value)

    def _check_objective(self) -> None:
        named = isinstance(self.objective, str) and self.objective in OBJECTIVES
        called = callable(self.objective) and not isinstance(self.objective, str)
        if not (named or called or self.objective is None):
            raise SettingsError(
                f"`objective` must be one of {', '.join(OBJECTIVES)}, or a callable; got "
                f"{self.objective!r}."
            )

    @property
    def reads_output(self) -> bool:
        """Whether the model's output has a say in what is pruned, and not activations alone."""
        if self.finish is not None:
            return True
        if self.baseline is not None:
            return self.baseline.reads_output
        return self.recipe.probes or self.num_passes == 2

    @property
    def ignored(self) -> list[int | str]:
        """`ignore` as a list."""
        return list(self.ignore)

    @property
    def first_precision(self) -> str:
        """Of the products in the first pass; with "auto" some blocks need another in float64."""
        return "float32" if self.precision == "auto" else self.precision

    @property
    def removes_blocks(self) -> bool:
        """Whether blocks may leave altogether: not where all layers are to be alike."""
        if not self.remove_blocks or self.uniform or self.baseline is not None:
            return False
        return self.recipe.allocation != "even"

    @property
    def ranks_heads_only(self) -> bool:
        """Whether the method's criterion has nothing to say of neurons."""
        return self.baseline is None and self.recipe.heads_only

    @property
    def leaves_heads(self) -> bool:
        """Whether neurons alone bear a budget of both kinds."""
        return self.baseline is not None and self.baseline.leaves_heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the report."""
        return {
            "method": self.method if isinstance(self.method, str) else repr(self.method),
            "num_calibration_samples": self.num_calibration_samples,
            "max_seq_length": self.max_seq_length,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "mask_fraction": self.mask_fraction,
            "device": None if self.device is None else str(self.device),
            "ignore": self.ignored,
            "round_to": self.round_to,
            "uniform": self.uniform,
            "remove_blocks": self.remove_blocks,
            "head_dims": self.head_dims,
            "effort": self.effort,
            "budget": self.budget,
            "passes": self.passes,
            "precision": self.precision,
            "finish": self.finish,
            "serve_with": self.serve_with,
            "objective": self.objective
            if isinstance(self.objective, str)
            else getattr(self.objective, "__qualname__", None),
        }


def kinds_left_alone(settings: Settings, targets: Sequence[Target]) -> list[Kind]:
    """Kinds of blocks that no target speaks of, or not the method: they are not measured.

    Raises
    ------
    SettingsError
        If the method ranks heads only, and a target speaks of neurons too.
    TargetError
        If a target is none.
    """
    for target in map(checked_target, targets):
        kinds = target.fractions().keys()
        of_embeddings = target.is_joint or target.of_embeddings < 1
        if of_embeddings and settings.baseline is not None:
            raise SettingsError(
                f"method={settings.method!r} prunes heads and neurons, but {target!r} is of "
                "embeddings too. Use method='stat', or leave them out."
            )
        if target.is_joint and settings.recipe.allocation != "searched":
            raise SettingsError(
                f"{target!r} shares one budget by what whole models do, which "
                f"method={settings.method!r} or its budget does not measure. Use method='stat', or "
                "a fraction for embeddings by themselves: embeddings=0.5."
            )
        if not kinds:
            continue
        if settings.ranks_heads_only and kinds != {"heads"} and "neurons" not in settings.ignored:
            value = next(iter(target.fractions().values()))
            raise SettingsError(
                f"method={settings.method!r} ranks heads only, but {target!r} is of neurons too. "
                f"Pass target=MACs({{'heads': {value:g}}}), or ignore='neurons'."
            )
    named = {kind for target in targets for kind in target.fractions()}
    if "all" in named:
        return ["heads"] if settings.leaves_heads else []
    return [kind for kind in KINDS if kind not in named]
