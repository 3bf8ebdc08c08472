"""The methods: which channels, which correction, which budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from stat_prune.errors import SettingsError
from stat_prune.settings.arguments import flag
from stat_prune.settings.fields import Config, Integer, OneOf, checked

if TYPE_CHECKING:
    from stat_prune.model.running import Objective

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
ObjectiveName = Literal["logits", "hidden-states", "pooled"]
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)

#: How a budget is spread over blocks.
Allocation = Literal["searched", "probed", "unweighted", "even"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)

#: How much is spent on the search for a budget.
Effort = Literal["fast", "normal", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)

#: Of the products in the statistics; "auto" is float32 but where that is too coarse.
Precision = Literal["auto", "float64", "float32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: What is fitted to the dense model's outputs when a model has been cut.
Finish = Literal["scales", "lora", "weights"]
FINISHES: tuple[Finish, ...] = get_args(Finish)

#: Fields that a representation has only where something was asked for.
_SILENT = (
    *("objective", "effort", "precision"),
    *("takes_sizes", "uniform", "times", "experts", "resumes"),
)


class _Named:
    """Functions go by their names, which are the same in every process.

    Runs are told apart by it, and what was not asked for beyond the method's parts leaves no trace.
    """

    def __repr__(self) -> str:
        values = {
            one.name: value
            for one in fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, one.name)) != one.default or one.name not in _SILENT
        }
        parts = (f"{k}={getattr(v, '__qualname__', repr(v))}" for k, v in values.items())
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class Method(_Named, Config):
    """A retraining-free method, as a choice of its parts.

    `stat_prune.prune` takes the last five directly, too, for a method that has a name; it calls
    `allocation` ``budget``.

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
        How the budget is spread over blocks: searched, by what whole pruned models do to the
        output; probed, by the measured effect of each block alone; unweighted, by the blocks' own
        relative errors; even, the same fraction everywhere. Default: the method's own way.

        Of methods that are pipelines of their own, "flap" and "kprune" take "searched": the sizes
        of every block are those that method="stat" finds with the same seed and effort, units and
        correction their own.
    passes : {1, 2}
        1: the correction is solved from the dense network's activations; 2: once more, on the
        pruned network. Default: 2 where the budget is searched for, but with the fast `effort`;
        else what the method says.

        The second is solved from the pruned network's own activations: consumers once more, and
        all that reads the residual stream (producers, poolers, classifiers), so that it answers as
        to the dense model's. It is taken unless it is clearly farther on calibration sequences held
        out.
    objective : {"logits", "hidden-states", "pooled"} or callable, optional
        What is to be preserved: logits; hidden-states, the final state of every token, whatever the
        head; or pooled, their mean over a sequence. Default: logits where there are any; of a
        sentence encoder its own embeddings.

        A callable goes from ``(dense_output, pruned_output, batch)`` to a tensor of distances. The
        default is the hidden states where there are no logits
        (`stat_prune.measuring.objectives.output_distance`); of a ``SentenceTransformer`` or
        ``SparseEncoder`` its embeddings, with all that is behind the transformer.
    effort : {"fast", "normal", "thorough"}, optional
        What the search for the budget may spend: fast, normal, thorough. Default: normal; layer by
        layer fast.

        ``"fast"`` measures the whole pruned model at half a dozen ways to spread it and takes the
        nearest to the dense one. ``"normal"`` measures them on more examples, searches on from
        there for most of a forward pass over the calibration set where the output has a value a
        token (with ``passes=1`` for about three, whatever the output), and decides on examples held
        out; ``"thorough"`` searches for ten to twelve. What is folded for each trial comes on top.
        All but ``"fast"`` try a second pass of the correction where `passes` is not said, for about
        five forward passes more.
        Where there are too few examples to hold any out, and of methods that do not search, nothing
        is searched; the report says what was done.
    precision : {"auto", "float64", "float32"}
        Of products in the statistics: float32 is quicker and a little coarser than float64, auto is
        float32 where that is no loss. Default: auto.

        Sums are in float64 either way. Float32 is quicker most of all on GPUs that are slow in
        float64; what is left of a channel once others explain it cannot be told from nothing below
        about 3e-4 of its norm (`stat_prune.linalg.Moments`). ``"auto"`` is ``"float32"``, and
        another pass with ``"float64"`` over blocks with channels that come near it, if there are
        any.
    """

    criterion: CriterionName | Callable[..., Any] = "interpolative"
    corrected: bool = checked(True, flag)
    absorb_mean: bool = checked(True, flag)
    allocation: Allocation = checked("searched", OneOf(ALLOCATIONS), keyword="budget")
    passes: Literal[1, 2] = checked(1, Integer(1, 2), keyword="passes")
    objective: ObjectiveName | Objective | None = checked(
        None, OneOf(OBJECTIVES, True, "a callable"), keyword="objective"
    )
    effort: Effort | None = checked(None, OneOf(EFFORTS, True), keyword="effort")
    precision: Precision = checked("auto", OneOf(PRECISIONS), keyword="precision")

    # What goes with every method that is made of parts; a `Baseline` says it of itself.
    uniform: ClassVar[bool] = True
    times: ClassVar[bool] = True
    experts: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    factors: ClassVar[bool] = True
    head_dims: ClassVar[bool] = True
    leaves_heads: ClassVar[bool] = False
    allocations: ClassVar[tuple[Allocation, ...]] = ALLOCATIONS

    @property
    def probes(self) -> bool:
        """Whether it measures what each block alone does to the output."""
        return self.allocation in ("searched", "probed")

    @property
    def heads_only(self) -> bool:
        """Whether the criterion has nothing to say of neurons."""
        return self.criterion in ATTENTION_CRITERIA

    @property
    def own_stages(self) -> bool:
        """Whether it goes through stages that others do not, which look at more than a layer."""
        return self.heads_only

    @property
    def reads_output(self) -> bool:
        """Whether the model's output has a say, and not activations alone."""
        return self.probes or self.passes == 2

    @property
    def removes_blocks(self) -> bool:
        """Whether blocks may leave altogether: not where all keep the same fraction."""
        return self.allocation != "even"

    def __post_init__(self) -> None:
        criteria = get_args(CriterionName)
        if self.criterion not in criteria and not callable(self.criterion):
            raise SettingsError(
                f"`criterion` must be one of {', '.join(criteria)}, or a function that ranks "
                f"units; got {self.criterion!r}."
            )
        super().__post_init__()
        if self.passes == 2 and not self.corrected:
            raise SettingsError(
                "passes=2 solves the correction again, but corrected=False has none. Use passes=1."
            )


@dataclass(frozen=True, repr=False)
class Baseline(_Named):
    """A method that is a pipeline of its own, from data to plan, to compare with.

    What it does not say that it can is refused before any work.

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
    takes_sizes : bool
        Whether `plan` has a third argument: None, or what finds `stat_prune.choosing.plan.Sizes`
        to keep to. That takes as long as ``method="stat"``, so `plan` calls it when it has refused
        what it is not defined for.
    uniform : bool
        Whether it keeps to one size for all blocks of a part (`stat_prune.model.blocks.Block`).
    times : bool
        Whether it can aim at a time: at what `Budget.cost` says of sizes then.
    experts : bool
        Whether it keeps to one size for the experts of a layer.
    resumes : bool
        Whether it finds the same once more, so that a run of it can be taken up again. What `plan`
        does is done again, unless the result was saved.
    """

    name: str
    plan: Callable[..., Any] | str
    reads_output: bool = False
    leaves_heads: bool = False
    takes_sizes: bool = False
    uniform: bool = False
    times: bool = False
    experts: bool = False
    resumes: bool = False

    # What goes with none, as in `Method`.
    factors: ClassVar[bool] = False
    head_dims: ClassVar[bool] = False
    corrected: ClassVar[bool] = False
    heads_only: ClassVar[bool] = False
    removes_blocks: ClassVar[bool] = False
    own_stages: ClassVar[bool] = True

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """Ways to spread the budget that may be asked for in place of its own."""
        return ("searched",) if self.takes_sizes else ()

    @property
    def planner(self) -> Callable[..., Any]:
        """`plan`, imported."""
        return resolve_name(self.plan) if isinstance(self.plan, str) else self.plan


class _Published(Mapping[str, Baseline]):
    """The published ones by name; each is imported when it is asked for."""

    @property
    def _places(self) -> dict[str, str]:
        # Its modules import this one, and torch, which a list of names need not wait for.
        places: dict[str, str] = resolve_name("stat_prune.baselines:PLACES")
        return places

    def __getitem__(self, name: str) -> Baseline:
        found: Baseline = resolve_name(f"stat_prune.baselines.{self._places[name]}")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


BASELINES = _Published()

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
