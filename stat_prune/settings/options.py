"""What a pruning run may be asked for, by subject and by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from stat_prune.settings.arguments import LARGEST_SEED, flag, integer
from stat_prune.settings.fields import Config, Integer, Number, OneOf, checked
from stat_prune.settings.methods import (
    Allocation,
    Baseline,
    Effort,
    Finish,
    Method,
    ObjectiveName,
    Precision,
)

if TYPE_CHECKING:
    import torch

    from stat_prune.model.running import Objective

#: Of the tokens of a text: that of BERT's pre-training (Devlin et al. 2019).
MASK_FRACTION = 0.15

#: Programs that a result can be meant for.
Server = Literal["llama.cpp", "mlx", "vllm", "onnx", "openvino"]
SERVERS: tuple[Server, ...] = get_args(Server)

#: llama.cpp quantizes rows in multiples of it: those of the matrices that read neurons.
_ROWS_OF_LLAMA_CPP = 32

#: No layer is as wide, and what is computed with it stays within 64 bits.
_LARGEST_MULTIPLE = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Calibration(Config):
    """How examples are read.

    Attributes
    ----------
    num_calibration_samples : int
        Examples drawn from the dataset.

        Where the budget is searched for, an eighth as many are drawn besides and held out; where
        there are no more, a ninth of these is.
    max_seq_length : int, optional
        Tokens that longer examples are cut to. Default: what model and tokenizer take, 512 at most.
    batch_size : int
        Sequences at once; changes nothing beyond rounding.
    seed : int
        Of every random choice.

        It decides which examples are drawn, which of them probe, and which tokens are masked.
    mask_fraction : float
        Of the tokens, masked in the examples of a masked language model; 0 leaves them.

        They are replaced by the tokenizer's mask where the model has a head for masked tokens
        (``...ForMaskedLM``): that is what it reads in use. Examples are left as they are, too,
        where one of them has a mask already, and for an objective that the head has no part in.
    """

    num_calibration_samples: int = checked(512, Integer())
    max_seq_length: int | None = checked(None, Integer(optional=True))
    batch_size: int = checked(32, Integer())
    seed: int = checked(0, Integer(0, LARGEST_SEED))
    mask_fraction: float = checked(MASK_FRACTION, Number(most=1))


@dataclass(frozen=True, kw_only=True)
class Constraints(Config):
    """What sizes the result may have.

    Attributes
    ----------
    round_to : int
        Numbers of neurons are multiples of this.
    uniform : bool
        The same sizes in every layer, and such as the family's config takes where it can say them.
    remove_blocks : bool
        All heads of a layer, or all neurons, may leave together: for targets that are out of reach
        otherwise.

        They do where the budget is then best spent: of such a block the consumer's bias is left,
        which has taken up the block's mean output. Ignored with `uniform` and by methods that keep
        the same fraction of every block. Off by default, as what a block's last units do is hard to
        foresee.
    head_dims : bool
        Dimensions inside heads may leave, in the families that docs/architectures.md lists for it.

        They do where the budget is then better spent on examples held out: of each layer one number
        for queries and keys, one for values, in multiples of `round_to`. It takes one fraction of
        MACs, parameters, bytes or time, the default budget, and about half as long again.
    serve_with : {"llama.cpp", "mlx", "vllm", "onnx", "openvino"}, optional
        Choose only what this program holds: llama.cpp, mlx, vllm, onnx, openvino.

        What it would not hold is refused before any work: multiples of 32 neurons for llama.cpp's
        quantized rows, numbers of heads that the config says for vLLM, no blocks removed where
        there is no form for that (docs/serving.md). With `uniform` nothing is asked but that.
    """

    round_to: int = checked(1, Integer())
    uniform: bool = checked(False, flag)
    remove_blocks: bool = checked(False, flag)
    head_dims: bool = checked(False, flag)
    serve_with: Server | None = checked(None, OneOf(SERVERS, True))

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("round_to", self.round_to, 1, _LARGEST_MULTIPLE)
        if self.serve_with == "llama.cpp":
            self._take("round_to", math.lcm(self.round_to, _ROWS_OF_LLAMA_CPP))


class Options(TypedDict, total=False):
    """Fields of `Calibration`, `Constraints` and `Method` that are taken directly, too."""

    num_calibration_samples: int
    max_seq_length: int | None
    batch_size: int
    seed: int
    mask_fraction: float
    round_to: int
    uniform: bool
    remove_blocks: bool
    head_dims: bool
    serve_with: Server | None
    objective: ObjectiveName | Objective | None
    effort: Effort | None
    budget: Allocation | None
    passes: Literal[1, 2] | None
    precision: Precision | None


class Arguments(Options, total=False):
    """All that says how to prune: arguments that `prune` and its relatives have in common."""

    method: str | Method | Baseline
    calibration: Calibration | None
    constraints: Constraints | None
    ignore: int | str | Iterable[int | str] | None
    device: str | int | torch.device | None
    finish: Finish | None
    inplace: bool
    progress: bool
