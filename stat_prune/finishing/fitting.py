"""A short optimisation of a few numbers of a pruned model, stopped by sequences held out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from stat_prune.data.batching import row_length
from stat_prune.data.calibration import CalibrationSet
from stat_prune.errors import SettingsError
from stat_prune.finishing.updates import Updates
from stat_prune.measuring.objectives import judged
from stat_prune.measuring.sensitivity import distance
from stat_prune.model.blocks import Block
from stat_prune.model.running import Batch, Objective, evaluating
from stat_prune.reporting.finish_report import Finish
from stat_prune.vib.distillation import LayerMap, hidden_distance, layer_map_of, run_on
from stat_prune.vib.training_data import BatchesOfOneLength, TrainingSet

#: Sequences a step.
BATCH_SIZE = 8

#: Passes over the sequences, where there are not more of them than that.
PASSES = 5

#: How often the fit is judged; after so many times without a gain it ends.
PARTS = 5
PATIENCE = 2

#: Of AdamW, at the end of the warm-up: for scales or low-rank updates, and for vectors.
RATES = {"scales": 1e-2, "lora": 5e-3}
VECTOR_RATE = 1e-3
WARM_UP = 0.1
MAX_GRAD_NORM = 1.0

#: Of the relative squared distance of hidden states, beside the objective.
HIDDEN_WEIGHT = 1.0


def fit(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    blocks: Sequence[Block],
    examples: CalibrationSet,
    objective: Objective,
    *,
    kind: str,
    seed: int,
    num_sequences: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Tensor], Finish]:
    """Fit a pruned model's scales, biases and norms to the dense model's outputs.

    Minimises the objective, which needs no labels, and the distance of hidden states by AdamW. The
    numbers that do best on the sequences held out are returned, those of the start among them.

    Parameters
    ----------
    model, dense : PreTrainedModel
        Pruned and dense, on one device; both unchanged. The fit is of a copy in float32.
    blocks : sequence of Block
        Of the dense model.
    examples : CalibrationSet
        With sequences held out.
    objective : callable
        Distance of outputs.
    kind : {"scales", "lora"}
    seed : int
    num_sequences : int
        To read, those that are read again counted again.
    advance : callable
        Called after each of `num_steps`.

    Returns
    -------
    dict of str to Tensor
        The weights that are changed, by name, in float32; none where the start is kept.
    Finish
    """
    assert examples.held_out is not None
    student = copy.deepcopy(model).float()
    layer_map = _layer_map(student, dense, blocks)
    updates = Updates(student, blocks, kind, seed)
    steps = num_steps(num_sequences)
    optimizer = torch.optim.AdamW(
        [
            {"params": updates.weights, "lr": RATES[kind]},
            {"params": updates.vectors, "lr": VECTOR_RATE},
        ],
        weight_decay=0.0,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(WARM_UP * steps), steps)
    checks = {math.ceil(part * steps / PARTS) for part in range(1, PARTS + 1)}

    def measured() -> float:
        assert examples.held_out is not None
        return distance(dense, student, examples.held_out.batches, objective)

    distances, best, step = [measured()], None, 0
    with evaluating(dense), evaluating(student), torch.enable_grad():
        for step, batch in enumerate(_batches(examples, steps, seed), 1):
            loss = _loss(student, dense, batch, objective, layer_map)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(updates.numbers, MAX_GRAD_NORM)
            if not bool(norm.isfinite()):
                break
            optimizer.step()
            schedule.step()
            advance()
            if step in checks:
                distances.append(measured())
                if distances[-1] <= min(distances):
                    best = [one.detach().clone() for one in updates.numbers]
                elif len(distances) - 1 - distances.index(min(distances)) >= PATIENCE:
                    break
    taken = distances.index(min(distances))
    with torch.no_grad():
        for tensor, value in zip(updates.numbers, best or (), strict=bool(best)):
            tensor.copy_(value)
    report = Finish(
        kind=kind,
        numbers=sum(one.numel() for one in updates.numbers),
        sequences=examples.num_samples,
        held_out_sequences=examples.held_out.num_samples,
        distances=distances,
        taken=taken,
        passes=step * BATCH_SIZE / examples.num_samples,
    )
    return (updates.folded() if taken else {}), report


def num_steps(num_sequences: int) -> int:
    """Steps that read so many sequences."""
    return math.ceil(num_sequences / BATCH_SIZE)


def _batches(examples: CalibrationSet, steps: int, seed: int) -> Iterator[Batch]:
    """So many batches of sequences about as long as each other, in a new order each pass."""
    rows = examples.rows()
    data = TrainingSet(rows, examples.pad_token_id)
    order = BatchesOfOneLength([row_length(row) for row in rows], BATCH_SIZE, seed)
    left = steps
    for epoch in range(steps):
        order.set_epoch(epoch)
        indices = list(order)
        for start in range(0, len(indices), BATCH_SIZE):
            if not left:
                return
            left -= 1
            yield data.collate([rows[index] for index in indices[start : start + BATCH_SIZE]])


def _loss(
    student: PreTrainedModel,
    dense: PreTrainedModel,
    batch: Batch,
    objective: Objective,
    layer_map: LayerMap,
) -> Tensor:
    """The objective, and the distance of hidden states, which say more than a few logits do."""
    with torch.no_grad():
        expected, expected_states = run_on(judged(dense, objective), batch)
    found, states = run_on(judged(student, objective), batch)
    loss = objective(expected, found, batch).mean()
    if not loss.requires_grad:
        raise SettingsError(
            "The objective's distances have no gradient, by which to fit. Compute them in torch, "
            "without detach() or no_grad, or leave finish out."
        )
    if layer_map:
        loss = loss + HIDDEN_WEIGHT * hidden_distance(states, expected_states, batch, layer_map)
    return loss


def _layer_map(
    student: PreTrainedModel, dense: PreTrainedModel, blocks: Sequence[Block]
) -> LayerMap:
    """Layers whose outputs are compared; none where there are several stacks, or layers share."""
    if not all(one.mask == "attention_mask" and one.calls == 1 for one in blocks):
        return ()
    if student.config.hidden_size != dense.config.hidden_size:
        return ()
    return layer_map_of(student, dense, None)
