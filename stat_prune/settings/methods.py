"""The methods: which channels, which correction, which budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pkgutil import resolve_name
from typing import Any, Literal, get_args

from stat_prune.errors import SettingsError

#: The names of the criteria; `choosing.criteria.CRITERIA` has the functions. Names of methods and
#: criteria can be listed without torch, which takes seconds to import.
CriterionName = Literal[
    "interpolative",
    "obs",
    "magnitude",
    "wanda-sp",
    "random",
    "attention-entropy",
    "attention-sparsity",
    "attention-distribution",
    "attention-combined",
]

#: Criteria that look at attention weights, and so at heads only.
ATTENTION_CRITERIA: tuple[CriterionName, ...] = (
    "attention-entropy",
    "attention-sparsity",
    "attention-distribution",
    "attention-combined",
)


#: What the budget is to preserve, by name; `stat_prune.measuring.objectives` has the functions.
OBJECTIVES = ("logits", "hidden-states", "pooled")

#: How a budget is spread over blocks.
Allocation = Literal["searched", "probed", "unweighted", "even"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)

#: What is fitted to the dense model's outputs when a model has been cut.
FINISHES = ("scales", "lora")

#: Programs that a result can be meant for.
SERVERS = ("llama.cpp", "mlx", "vllm", "onnx", "openvino")

#: How much is spent on the search for a budget.
EFFORTS = ("fast", "normal", "thorough")


class _Named:
    """Functions go by their names, which are the same in every process."""

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        parts = (f"{k}={getattr(v, '__qualname__', repr(v))}" for k, v in values.items())
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class Method(_Named):
    """A retraining-free method, as a choice of its parts.

    Attributes
    ----------
    criterion : str or callable
        Which units stay: one of `CriterionName`, or a function that ranks them
        (`stat_prune.choosing.criteria.Criterion`).
    corrected : bool
        Whether the least-squares correction is folded into the consumer.
    absorb_mean : bool
        Whether the decomposition is of centred activations and the mean goes into the bias.
    allocation : {"searched", "probed", "unweighted", "even"}
        How the budget is spread over blocks: by what whole pruned models do to the output, by the
        measured effect of each block alone, by the blocks' own relative errors, or the same
        fraction everywhere.
    passes : {1, 2}
        Whether the correction is solved a second time, from the pruned network's activations.
    """

    criterion: CriterionName | Callable[..., Any] = "interpolative"
    corrected: bool = True
    absorb_mean: bool = True
    allocation: Allocation = "searched"
    passes: Literal[1, 2] = 1

    @property
    def probes(self) -> bool:
        """Whether it measures what each block alone does to the output."""
        return self.allocation in ("searched", "probed")

    @property
    def heads_only(self) -> bool:
        """Whether the criterion has nothing to say of neurons."""
        return self.criterion in ATTENTION_CRITERIA

    def __post_init__(self) -> None:
        criteria = get_args(CriterionName)
        if self.criterion not in criteria and not callable(self.criterion):
            raise SettingsError(
                f"`criterion` must be one of {', '.join(criteria)}, or a function that ranks "
                f"units; got {self.criterion!r}."
            )
        if self.allocation not in ALLOCATIONS:
            raise SettingsError(
                f"`allocation` must be one of {', '.join(ALLOCATIONS)}; got {self.allocation!r}."
            )
        for name in ("corrected", "absorb_mean"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        if isinstance(self.passes, bool) or self.passes not in (1, 2):
            raise SettingsError(f"`passes` must be 1 or 2, got {self.passes!r}.")
        if self.passes == 2 and not self.corrected:
            raise SettingsError(
                "passes=2 solves the correction again, but corrected=False has none. Use passes=1."
            )


@dataclass(frozen=True, repr=False)
class Baseline(_Named):
    """A method that is a pipeline of its own, from data to plan, to compare with.

    It has no uniform mode, aims at MACs and parameters and at no time, and is not taken up again.

    Attributes
    ----------
    name : str
    plan : callable or str
        From a `stat_prune.pipeline.run.Run` and a
        `stat_prune.choosing.budget.costs.Budget` to a list with the
        `stat_prune.choosing.plan.BlockPlan` of each of the run's blocks; or where it is, as
        ``"module:function"``.
    reads_output : bool
        Whether the model's output has a say, and not activations alone.
    leaves_heads : bool
        Whether neurons alone leave.
    """

    name: str
    plan: Callable[..., Any] | str
    reads_output: bool = False
    leaves_heads: bool = False

    @property
    def planner(self) -> Callable[..., Any]:
        """`plan`, imported."""
        return resolve_name(self.plan) if isinstance(self.plan, str) else self.plan


#: Where the published ones are; each is imported when it is asked for.
_BASELINES = "stat_prune.baselines."

BASELINES: dict[str, Baseline] = {
    one.name: one
    for one in (
        Baseline("stat-paper", f"{_BASELINES}stat_paper:plan"),
        Baseline("flap", f"{_BASELINES}flap:plan"),
        Baseline("fisher", f"{_BASELINES}fisher:plan", reads_output=True),
        Baseline("fisher-untuned", f"{_BASELINES}fisher:plan_untuned", reads_output=True),
        Baseline("kprune", f"{_BASELINES}kprune:plan", reads_output=True),
        Baseline("kcm", f"{_BASELINES}kcm:plan", leaves_heads=True),
        Baseline("kcm-untuned", f"{_BASELINES}kcm:plan_untuned", leaves_heads=True),
    )
}

METHODS: dict[str, Method] = {
    "stat": Method(),
    "stat-two-pass": Method(passes=2),
    "id-probed": Method(allocation="probed"),
    "id-unweighted": Method(allocation="unweighted"),
    "id-even": Method(allocation="even"),
    "id-uncorrected": Method(corrected=False, absorb_mean=False, allocation="even"),
    "magnitude": Method("magnitude", corrected=False, absorb_mean=False, allocation="even"),
    "random": Method("random", corrected=False, absorb_mean=False, allocation="even"),
    # ZipLM, with two stand-ins for its search of the sizes: see `stat_prune.choosing.criteria.obs`.
    "obs": Method("obs", absorb_mean=False, allocation="unweighted"),
    "obs-probed": Method("obs", absorb_mean=False, allocation="probed"),
    "wanda-sp": Method("wanda-sp", corrected=False, absorb_mean=False, allocation="even"),
    "random-corrected": Method("random", allocation="even", passes=1),
    # Heads by what they attend to, without the correction of STAT and with it.
    **{
        name: Method(name, corrected=False, absorb_mean=False, allocation="even")
        for name in ATTENTION_CRITERIA
    },
    **{
        f"{name}-corrected": Method(name, allocation="even", passes=1)
        for name in ATTENTION_CRITERIA
    },
}


def baseline_named(method: str | Method | Baseline) -> Baseline | None:
    """The `Baseline` of a name; one is returned as it is. None for a method of parts."""
    if isinstance(method, Baseline):
        return method
    return BASELINES.get(method) if isinstance(method, str) else None


def method_named(method: str | Method) -> Method:
    """The `Method` of a name; a `Method` is returned as it is.

    Raises
    ------
    SettingsError
        If the name is unknown; lists those that are known.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise SettingsError(
            f"Unknown method {method!r}. Known: {', '.join([*METHODS, *BASELINES])}, or a "
            "stat_prune.Method(...)."
        )
    return METHODS[method]
