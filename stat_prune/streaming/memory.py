"""What pruning layer by layer will take of memory and disk, known before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from stat_prune.blocks import Block
from stat_prune.clock import peak_memory
from stat_prune.methods import Method
from stat_prune.run import MIN_PROBE_SEQUENCES, Run
from stat_prune.streaming.weights import Checkpoint
from stat_prune.targets import Target, Tolerance

#: Bytes of a float64.
_DOUBLE = 8

#: Float64 copies, of 2^21 values each, that the divergence of two outputs takes.
_OBJECTIVE = 4 * _DOUBLE * 2**21


@dataclass(frozen=True)
class Needs:
    """Bytes.

    Attributes
    ----------
    memory : int
        Peak of the process, with what it has taken before.
    disk : int
        Of the working folder, with the pruned layers.
    """

    memory: int
    disk: int


def needs_of(run: Run, recipe: Method, checkpoint: Checkpoint, target: Target) -> Needs:
    """Predict what a run will take.

    The peak is one layer and the most that is done with it at a time: its statistics are
    collected; a block is decomposed, which takes the Gram matrix, its factor, and a float64 copy of
    the consumer's weight; outputs are compared; or a correction is solved.
    """
    model, batches = run.model, run.calibration.batches
    layers = [checkpoint.num_bytes(checkpoint.layer_names(n)) for n in range(checkpoint.num_layers)]
    element = next(model.parameters()).element_size()
    tokens = max(batch[run.calibration.main_mask].numel() for batch in batches)
    width = run.blocks[0].output_size
    probed = recipe.allocation == "probed"
    outer = checkpoint.num_bytes(checkpoint.outer_names(base=True, head=True))
    head = _num_outputs(model)
    kept = 1.0 if isinstance(target, Tolerance) else max(target.fractions().values())
    output = 2 * tokens * head * element + _OBJECTIVE if probed else 0
    stages = [
        outer + (layers[0] if probed else 0) + output,
        *(_collecting(members, tokens, width) for members in _by_layer(run.blocks)),
        *(max(_decomposing(block), _folding(block, kept)) for block in run.blocks),
    ]
    state = width * element
    streams = 1 + len(run.blocks) if probed else 0
    length = max(batch[run.calibration.main_mask].shape[1] for batch in batches)
    states = state * (run.calibration.num_samples * length + streams * MIN_PROBE_SEQUENCES * length)
    grams = sum(_DOUBLE * block.num_channels**2 for block in run.blocks)
    return Needs(
        memory=peak_memory(run.device) + max(layers) + max(stages),
        # A layer's states are there until the next's are.
        disk=2 * states + grams + sum(layers) + outer,
    )


def _by_layer(blocks: Sequence[Block]) -> list[list[Block]]:
    layers: dict[int, list[Block]] = {}
    for block in blocks:
        layers.setdefault(block.layer, []).append(block)
    return list(layers.values())


def _collecting(blocks: Sequence[Block], tokens: int, width: int) -> int:
    """Moments with their buffers of 1,024 rows, and the activations of a batch."""
    moments = sum(_DOUBLE * b.num_channels * (b.num_channels + 1025) for b in blocks)
    widest = max(block.num_channels for block in blocks)
    return moments + 4 * tokens * (4 * width + 3 * widest)


def _decomposing(block: Block) -> int:
    """For the check of dependence, the Gram matrix and two more of its size."""
    m, d = block.num_channels, block.output_size
    return _DOUBLE * max(3 * m * m, 2 * m * m + d * m + 1024 * d)


def _folding(block: Block, kept: float) -> int:
    """The Gram matrix, its kept part and that part's factor, the weight, and solutions of it."""
    m, d = block.num_channels, block.output_size
    k = round(kept * m)
    return _DOUBLE * (m * m + 2 * k * k + d * m + 3 * k * d)


def _num_outputs(model: nn.Module) -> int:
    """Values that the head has for a token."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return 0 if head is None else len(head.weight)
