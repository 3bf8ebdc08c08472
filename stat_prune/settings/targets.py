"""Targets: the fraction of what is kept, and of what."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Self

from stat_prune.errors import SettingsError, TargetError
from stat_prune.model.blocks import KINDS, Block, SeqLength
from stat_prune.settings.fields import Plain, check_known

#: Cost of a block with so many units and key/value heads.
CostFunction = Callable[[Block, int, int], float]

#: What a mapping calls the token embeddings, and a language model's head with weights of its own,
#: which are no blocks: no token leaves.
EMBEDDINGS, HEAD = "embeddings", "lm_head"

#: What it calls dimensions inside heads: those in which queries meet keys, and those of values.
DIMENSIONS = QUERY_KEY, VALUE = "query-key", "value"

_OF_DIMENSIONS = (
    " Dimensions inside heads take MACs({'query-key': 0.5, 'value': 0.5}) or Parameters(...)."
)
_REMEDIES = {
    QUERY_KEY: _OF_DIMENSIONS,
    VALUE: _OF_DIMENSIONS,
    EMBEDDINGS: " Token embeddings take Parameters({'embeddings': 0.5}), or embeddings=0.5.",
    HEAD: " The head of a language model takes Parameters({'lm_head': 0.5}), or lm_head=0.5.",
}


@dataclass(frozen=True, repr=False)
class Target(Plain):
    """A kept fraction, of all blocks together or of the blocks of one kind.

    Attributes
    ----------
    fraction : float or mapping of {"heads", "neurons"} to float
        In (0, 1]. A kind that a mapping does not name is kept whole. `MACs` and `Parameters` know
        more kinds.
    """

    fraction: float | Mapping[str, float]

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.fraction, Mapping):
            unknown = set(self.fraction) - {*KINDS, *self._other_kinds()}
            if unknown or not self.fraction:
                *kinds, last = map(repr, (*KINDS, *self._other_kinds()))
                remedies = dict.fromkeys(t for name, t in _REMEDIES.items() if name in unknown)
                raise TargetError(
                    f"{name} takes a number or a mapping of {', '.join(kinds)} and {last} to "
                    f"numbers, got {dict(self.fraction)!r}." + "".join(remedies)
                )
        elif isinstance(self.fraction, Real):
            object.__setattr__(self, "fraction", _plain(self.fraction))
        given = self.fraction.values() if isinstance(self.fraction, Mapping) else [self.fraction]
        for value in given:
            self._check_fraction(value)

    def __repr__(self) -> str:
        # Runs are told apart by it, and what was not asked for leaves no trace.
        shown = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in (EMBEDDINGS, HEAD):
            if shown.get(name, ...) is None:
                del shown[name]
        values = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({values})"

    def to_dict(self) -> dict[str, Any]:
        """Its ``type`` and what it was given, as plain values."""
        given = {one.name: _plain(getattr(self, one.name)) for one in fields(self)}
        said = {name: value for name, value in given.items() if value is not None}
        return {"type": type(self).__name__, **said}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The target that `to_dict` came from, of any type where the class is `Target`.

        Raises
        ------
        SettingsError
            If a field is unknown, or there is no fraction.
        TargetError
            If there is no such type, or a value that it cannot have.
        """
        given = dict(values)
        name = given.pop("type", cls.__name__)
        kinds = {one.__name__: one for one in TARGETS if issubclass(one, cls)}
        if not isinstance(name, str) or name not in kinds:
            raise TargetError(f"The `type` must be one of {', '.join(kinds)}; got {name!r}.")
        kind: Any = kinds[name]
        check_known(f"{name} has no field", given, [one.name for one in fields(kind)])
        if "fraction" not in given:
            raise SettingsError(f"{name} lacks the field fraction, got {given!r}.")
        made: Self = kind(**given)
        return made

    def _other_kinds(self) -> tuple[str, ...]:
        """What a mapping may name besides kinds of blocks."""
        return ()

    def _check_fraction(self, value: Any) -> None:
        name = type(self).__name__
        if not _is_number(value):
            raise TargetError(f"{name} takes a number in (0, 1], got {value!r}.")
        if not 0 < value <= 1 or math.isnan(value):
            raise TargetError(
                f"{name} is the fraction that is kept and must lie in (0, 1], got {value!r}."
                + (f" Did you mean {self._instead(float(value))}?" if 1 < value <= 100 else "")
            )

    def _instead(self, value: float) -> str:
        """What a number above 1 may have meant: a percentage."""
        return f"{type(self).__name__}({value / 100:g})"

    def fractions(self) -> dict[str, float]:
        """Kept fraction by kind of block, or ``{"all": fraction}``."""
        if isinstance(self.fraction, Mapping):
            return {kind: value for kind, value in self.fraction.items() if kind in KINDS}
        return {"all": self.fraction}

    @property
    def of_dimensions(self) -> dict[str, float]:
        """Kept fraction of the dimensions inside heads, by what they are of (`DIMENSIONS`)."""
        if not isinstance(self.fraction, Mapping):
            return {}
        return {kind: self.fraction[kind] for kind in DIMENSIONS if kind in self.fraction}

    @property
    def bounds_error(self) -> bool:
        """Whether the numbers bound the error of each block, and not what the blocks cost."""
        return False

    @property
    def of_embeddings(self) -> float:
        """Kept fraction of the parameters of the token embeddings."""
        return 1.0

    @property
    def of_head(self) -> float:
        """Kept fraction of the parameters of a language model's head with weights of its own."""
        return 1.0

    @property
    def is_joint(self) -> bool:
        """Whether one budget is of the blocks and of the token embeddings, or of the head."""
        return False

    @property
    def factors(self) -> bool:
        """Whether token embeddings or a head may become two factors."""
        return self.is_joint or self.of_embeddings < 1 or self.of_head < 1

    def cost(self, seq_length: SeqLength) -> CostFunction:
        """What is limited, of a block.

        Parameters
        ----------
        seq_length : float or mapping of str to float
            Tokens a sequence, for MACs; by mask where a model reads several.

        Raises
        ------
        TypeError
            If it cannot be counted: of a time, or an error.
        """
        raise TypeError(f"{type(self).__name__} does not limit a cost.")

    def budgets(self, blocks: list[Block]) -> list[tuple[list[Block], float]]:
        """Which blocks share which fraction; blocks that are in no pair are kept whole."""
        if not isinstance(self.fraction, Mapping):
            return [(blocks, self.fraction)]
        return [
            ([block for block in blocks if block.kind == kind], value)
            for kind, value in self.fractions().items()
        ]


@dataclass(frozen=True, repr=False)
class MACs(Target):
    """Keep this fraction of the blocks' multiply-accumulates.

    Embeddings, the pooler and the task head are not counted (Kwon et al. 2022 and their
    successors count the same way); they cost what they cost before. The head of a language model is
    counted with ``lm_head=True``.

    A mapping names kinds by themselves: ``MACs({"heads": 0.8, "neurons": 0.7})``. Dimensions inside
    heads are two more, of models in which they can leave (docs/architectures.md): ``"query-key"``
    is of what the dimensions cost in which queries meet keys (their projections, and the products
    of both), ``"value"`` of what those of values cost (their projection, the sums that attention
    weighs, and what the output projection reads), in the heads that stay. ``MACs({"heads": 0.8,
    "query-key": 0.5})`` so keeps heads that cost 0.8 in all as they were, and then half of the
    query/key dimensions of these, a number for each layer.

    Attributes
    ----------
    fraction : float or mapping of {"heads", "neurons", "query-key", "value"} to float
    seq_length : float, optional
        Tokens a sequence, on which the share of attention depends. Default: the mean length of
        the calibration set.
    embeddings : float, optional
        Keep this fraction of the parameters of the token embeddings besides, as for `Parameters`.
    lm_head : float or True, optional
        Keep this fraction of the head of a language model besides, as for `Parameters`. True:
        `fraction` is of blocks and head together, at all tokens of a sequence, shared out by what
        whole models of both do to the output; a head that shares the token embeddings makes them
        smaller, too.
    """

    seq_length: float | None = None
    embeddings: float | None = None
    lm_head: float | bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embeddings is not None:
            self._check_fraction(self.embeddings)
        if self.is_joint and (self.embeddings is not None or isinstance(self.fraction, Mapping)):
            raise TargetError(
                f"lm_head=True counts the head with all blocks, got {self!r}. Pass one number, and "
                "leave embeddings out; or say what is kept of the head: lm_head=0.5."
            )
        if self.lm_head is not None and not self.is_joint:
            self._check_fraction(self.lm_head)
        if self.seq_length is None:
            return
        if not _is_number(self.seq_length) or not 0 < self.seq_length < math.inf:
            raise TargetError(f"seq_length is a number of tokens, got {self.seq_length!r}.")
        object.__setattr__(self, "seq_length", _plain(self.seq_length))

    def _other_kinds(self) -> tuple[str, ...]:
        return DIMENSIONS

    def cost(self, seq_length: SeqLength) -> CostFunction:
        """Multiply-accumulates."""
        return lambda block, units, groups: block.macs(units, groups, seq_length)

    @property
    def of_embeddings(self) -> float:
        """Kept fraction of the parameters of the token embeddings."""
        return 1.0 if self.embeddings is None else float(self.embeddings)

    @property
    def of_head(self) -> float:
        """Kept fraction of the parameters of a language model's head with weights of its own."""
        return 1.0 if self.lm_head is None or self.is_joint else float(self.lm_head)

    @property
    def is_joint(self) -> bool:
        """Whether one budget is of the blocks and of the head."""
        return self.lm_head is True


@dataclass(frozen=True, repr=False)
class Parameters(Target):
    """Keep this fraction of the parameters of the blocks' linear layers (weights and biases).

    Embeddings, normalisation, the pooler and the task head are not counted. Token embeddings are
    factored where a fraction of their own is given: ``Parameters({"embeddings": 0.5})`` for them
    alone, ``Parameters(0.6, embeddings=0.5)`` besides 0.6 of the blocks; or where they are counted
    with the blocks, ``Parameters(0.6, embeddings=True)``. A head that shares them shares the
    factors; embeddings of positions stay. So is the head of a language model that has weights of
    its own: ``Parameters({"lm_head": 0.5})``, ``Parameters(0.6, lm_head=0.5)``. ``"query-key"`` and
    ``"value"`` are as for `MACs`, of the parameters of their projections, with the columns of the
    output projection for values.

    Attributes
    ----------
    fraction : float or mapping to float
        Of {"heads", "neurons", "query-key", "value", "embeddings", "lm_head"}.
    embeddings : float or True, optional
        Kept fraction of the parameters of the token embeddings. True: `fraction` is of blocks,
        token embeddings and head together, shared out by what whole models of all do to the output.
    lm_head : float, optional
        Kept fraction of the parameters of a language model's head with weights of its own.
    """

    embeddings: float | bool | None = None
    lm_head: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_joint and isinstance(self.fraction, Mapping):
            raise TargetError(
                f"embeddings=True counts all kinds together, got {dict(self.fraction)!r}. Pass one "
                "number, or {'heads': ..., 'neurons': ..., 'embeddings': ...}."
            )
        if self.is_joint and self.lm_head is not None:
            raise TargetError(
                f"embeddings=True counts a head of its own, too, got {self!r}. Leave lm_head out, "
                "or say what is kept of the embeddings: embeddings=0.5."
            )
        for name, value in ((EMBEDDINGS, self.embeddings), (HEAD, self.lm_head)):
            if value is None or (name == EMBEDDINGS and self.is_joint):
                continue
            self._check_fraction(value)
            if isinstance(self.fraction, Mapping) and name in self.fraction:
                raise TargetError(f"{self!r} says twice what is kept of the {name}. Say it once.")

    def _other_kinds(self) -> tuple[str, ...]:
        return *DIMENSIONS, EMBEDDINGS, HEAD

    def cost(self, seq_length: SeqLength) -> CostFunction:
        """Parameters, at any length."""
        return Block.parameters

    @property
    def of_embeddings(self) -> float:
        """Kept fraction of the parameters of the token embeddings."""
        if isinstance(self.fraction, Mapping) and EMBEDDINGS in self.fraction:
            return float(self.fraction[EMBEDDINGS])
        return 1.0 if self.embeddings is None or self.is_joint else float(self.embeddings)

    @property
    def of_head(self) -> float:
        """Kept fraction of the parameters of a language model's head with weights of its own."""
        if isinstance(self.fraction, Mapping) and HEAD in self.fraction:
            return float(self.fraction[HEAD])
        return 1.0 if self.lm_head is None else float(self.lm_head)

    @property
    def is_joint(self) -> bool:
        """Whether one budget is of the blocks and of the token embeddings."""
        return self.embeddings is True


@dataclass(frozen=True, repr=False)
class Bytes(Target):
    """Keep this fraction of the bytes of all parameters: of the file of weights.

    Blocks, token embeddings and the head of a language model share what is left beside
    normalisation, embeddings of positions, pooler and other heads, which stay; as for
    ``Parameters(fraction, embeddings=True)``.

    Attributes
    ----------
    fraction : float
    """

    def __post_init__(self) -> None:
        if isinstance(self.fraction, Mapping):
            raise TargetError(
                f"Bytes takes one number for the whole model, got {dict(self.fraction)!r}. For "
                "kinds by themselves use Parameters."
            )
        super().__post_init__()

    def cost(self, seq_length: SeqLength) -> CostFunction:
        """Parameters: those of all blocks are of one dtype."""
        return Block.parameters

    @property
    def is_joint(self) -> bool:
        """Whether one budget is of the blocks and of the token embeddings."""
        return True


@dataclass(frozen=True, repr=False)
class Latency(Target):
    """Keep this fraction of the time that the model takes for a forward pass, as measured.

    The whole model is timed, with its embeddings and head, where it is computed and with as many
    threads as torch has then. Sequences are of one length and without padding; for a language model
    this is the time for reading a prompt, not for writing one token after another. Numbers of
    neurons are kept to multiples of 8, which take no longer than those in between, unless
    ``round_to`` says otherwise.

    Attributes
    ----------
    fraction : float
        Of the dense model's time; `Speedup` says the same as a factor.
    batch_size : int
        Sequences at once.
    seq_length : int, optional
        Tokens a sequence. Default: the mean length of the calibration set, rounded.
    """

    batch_size: int = 1
    seq_length: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.fraction, Mapping):
            raise TargetError(
                f"Latency takes one number for the whole model, got {dict(self.fraction)!r}. To "
                "leave heads or neurons alone, pass ignore='heads' or ignore='neurons'."
            )
        super().__post_init__()
        for name in ("batch_size", "seq_length"):
            value = getattr(self, name)
            if name == "seq_length" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise TargetError(f"{name} must be a positive integer, got {value!r}.")
            object.__setattr__(self, name, int(value))

    def _instead(self, value: float) -> str:
        return f"Speedup({value:g})"


def Speedup(factor: float, *, batch_size: int = 1, seq_length: int | None = None) -> Latency:
    """``Latency(1 / factor)``: make the forward pass so many times as fast.

    Parameters
    ----------
    factor : float
        At least 1; 2 halves the time.
    batch_size, seq_length
        As for `Latency`.
    """
    valid = _is_number(factor)
    if not valid or not 1 <= factor < math.inf:
        raise TargetError(
            f"Speedup takes a number from 1 on, got {factor!r}."
            + (f" Did you mean Latency({factor!r})?" if valid and 0 < factor < 1 else "")
        )
    return Latency(1 / float(factor), batch_size=batch_size, seq_length=seq_length)


@dataclass(frozen=True, repr=False)
class Tolerance(Target):
    """Keep as few channels of each block as this relative error of its activations allows.

    The error is STAT's epsilon: the relative Frobenius error ``||A - A_J T|| / ||A||`` of the
    consumer's input, with the mean of the channels absorbed where the consumer has a bias.
    A block that no smaller size serves is kept whole.
    """

    @property
    def bounds_error(self) -> bool:
        """Whether the numbers bound the error of each block, and not what the blocks cost."""
        return True


#: All kinds; `Speedup` is a `Latency`.
TARGETS: tuple[type[Target], ...] = (MACs, Parameters, Bytes, Latency, Tolerance)


#: What is less, and more than one, is rather meant as a speed-up.
_SMALLEST_PERCENTAGE = 5


def checked_target(target: Any) -> Target:
    """The target itself.

    Raises
    ------
    TargetError
        If it is none, with what was probably meant.
    """
    if isinstance(target, Target):
        return target
    raise TargetError(
        "`target` says what is kept, and of what: MACs, Parameters, Latency, Speedup or Tolerance; "
        f"got {target!r}. {_meant(target)}"
    )


def _meant(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"Did you mean MACs({dict(value)!r})?"
    try:
        number = float(value) if isinstance(value, str) or _is_number(value) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if 1 < number < _SMALLEST_PERCENTAGE:
        return f"Did you mean Speedup({number:g})?"
    if 0 < number <= 100:
        return f"Did you mean MACs({number if number <= 1 else number / 100:g})?"
    return "Pass, for instance, target=stat_prune.MACs(0.6)."


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A number of Python, as it is; one of numpy as one of Python; so in a mapping."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value if value is None or isinstance(value, int | float) else float(value)
