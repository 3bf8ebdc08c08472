"""A short optimisation of a pruned model's numbers, stopped by sequences held out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from stat_prune.data.batching import row_length
from stat_prune.data.calibration import CalibrationSet
from stat_prune.data.training_data import BatchesOfOneLength, TrainingSet
from stat_prune.errors import SettingsError
from stat_prune.finishing.updates import Updates, root_mean_square
from stat_prune.measuring.distillation import LayerMap, hidden_distance, layer_map_of, run_on
from stat_prune.measuring.objectives import reader_of
from stat_prune.measuring.sensitivity import distance
from stat_prune.model.blocks import Block
from stat_prune.model.running import Batch, Objective, evaluating
from stat_prune.reporting.finish_report import Finish

#: Sequences a step.
BATCH_SIZE = 8

#: Passes over the sequences, where there are not more of them than that.
PASSES = 5

#: How often the fit is judged; after so many times without a gain it ends, and at once when it is
#: so many times as far from the dense model as its start: less may be chance.
PARTS = 5
PATIENCE = 2
BROKEN_OFF = 1.05

#: Of AdamW, at the end of the warm-up: for scales; for low-rank updates and weights relative to the
#: root mean square of the weight's entries, and for vectors to that of theirs, or to the least that
#: counts.
RATES = {"scales": 1e-2, "lora": 1.6e-2, "weights": 1.6e-2}
VECTOR_RATE = 1e-2
LEAST_SIZE = 0.1

#: Of these, tried one after the other until one is never behind the start. What is best differs by
#: hundreds of times between models.
RATE_FRACTIONS = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
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
    """Fit a pruned model's scales (or weights), biases and norms to the dense model's outputs.

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
    kind : {"scales", "lora", "weights"}
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
    attempt = _Attempt(student, dense, updates, examples, objective, layer_map, advance)
    start, numbers = attempt.distance(), updates.values()
    distances, best, read = [start], None, 0
    steps = num_steps(num_sequences, examples.num_samples)
    for fraction in RATE_FRACTIONS:
        updates.set(numbers)
        found, values, done = attempt.run(kind, fraction, steps, seed, start)
        read += sequences_read(done, examples.num_samples)
        if values is not None and min(found) < min(distances):
            distances, best = [start, *found], values
        if max(found, default=math.inf) < start:
            break
    if best is None:
        distances += found
    else:
        updates.set(best)
    report = Finish(
        kind=kind,
        numbers=sum(one.numel() for one in updates.numbers),
        sequences=examples.num_samples,
        held_out_sequences=examples.held_out.num_samples,
        distances=distances,
        taken=distances.index(min(distances)),
        passes=read / examples.num_samples,
    )
    return (updates.folded() if best is not None else {}), report


@dataclass(frozen=True)
class _Attempt:
    """A fit at one rate, begun from the numbers that `updates` has."""

    student: PreTrainedModel
    dense: PreTrainedModel
    updates: Updates
    examples: CalibrationSet
    objective: Objective
    layer_map: LayerMap
    advance: Callable[[], None]

    def distance(self) -> float:
        """Of the output, on the sequences held out."""
        assert self.examples.held_out is not None
        return distance(self.dense, self.student, self.examples.held_out.batches, self.objective)

    def run(
        self, kind: str, fraction: float, steps: int, seed: int, least: float
    ) -> tuple[list[float], list[Tensor] | None, int]:
        """Distances after each part, the best numbers if any is below `least`, and steps done."""
        updates = self.updates
        optimizer = torch.optim.AdamW(_rates(updates, kind, fraction), weight_decay=0.0)
        schedule = LambdaLR(optimizer, lambda done: share_of_rate(done, steps))
        checks = {math.ceil(part * steps / PARTS) for part in range(1, PARTS + 1)}
        found: list[float] = []
        best, step, start = None, 0, least
        with evaluating(self.dense), evaluating(self.student), torch.enable_grad():
            for step, batch in enumerate(_batches(self.examples, steps, seed), 1):
                optimizer.zero_grad()
                loss = _loss(self.student, self.dense, batch, self.objective, self.layer_map)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(updates.numbers, MAX_GRAD_NORM)
                if not bool(norm.isfinite()):
                    break
                optimizer.step()
                schedule.step()
                self.advance()
                if step not in checks:
                    continue
                found.append(self.distance())
                if found[-1] < least:
                    best, least = updates.values(), found[-1]
                elif found[-1] > BROKEN_OFF * start:
                    break
                elif all(one > least for one in found[-PATIENCE:]) and len(found) >= PATIENCE:
                    break
        return found, best, step


def _rates(updates: Updates, kind: str, fraction: float) -> list[dict[str, Any]]:
    """Groups of parameters for an optimizer."""
    weights = [fraction * RATES[kind] * size for size in updates.sizes]
    sizes = (max(root_mean_square(vector), LEAST_SIZE) for vector in updates.vectors)
    vectors = [fraction * VECTOR_RATE * size for size in sizes]
    return [
        {"params": [numbers], "lr": rate}
        for numbers, rate in zip(updates.numbers, weights + vectors, strict=True)
    ]


def share_of_rate(done: int, steps: int) -> float:
    """Of the rate, at the step after so many: never none, as the first may be the only one."""
    warm_up = math.ceil(WARM_UP * steps)
    return min((done + 1) / warm_up, (steps - done) / max(steps - warm_up, 1))


def num_steps(num_sequences: int, num_samples: int) -> int:
    """Steps that read so many sequences, in passes over those that there are."""
    passes, rest = divmod(num_sequences, num_samples)
    return passes * math.ceil(num_samples / BATCH_SIZE) + math.ceil(rest / BATCH_SIZE)


def sequences_read(steps: int, num_samples: int) -> int:
    """What so many steps read: the last batch of a pass may be less than a whole one."""
    passes, rest = divmod(steps, math.ceil(num_samples / BATCH_SIZE))
    return passes * num_samples + rest * BATCH_SIZE


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


def check_gradient(dense: PreTrainedModel, objective: Objective, batch: Batch) -> None:
    """Refuse an objective that cannot be fitted to, before anything is cut.

    Raises
    ------
    SettingsError
    """
    with evaluating(dense):
        expected, _ = run_on(reader_of(dense, objective), batch)
    found = copy.copy(expected)
    for name, value in expected.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            found[name] = value.clone().requires_grad_()
    with torch.enable_grad():
        distances = objective(expected, found, batch)
    if not distances.requires_grad:
        raise SettingsError(
            "The objective's distances have no gradient, by which to fit. Compute them in torch, "
            "without detach() or no_grad, or leave finish out."
        )
    try:
        distances.sum().backward()
    except RuntimeError as error:
        raise SettingsError(
            f"The gradient of the objective's distances, by which to fit, fails: {error} Compute "
            "them without operations in place, or leave finish out."
        ) from error


def _loss(
    student: PreTrainedModel,
    dense: PreTrainedModel,
    batch: Batch,
    objective: Objective,
    layer_map: LayerMap,
) -> Tensor:
    """The objective, and the distance of hidden states, which say more than a few logits do."""
    with torch.no_grad():
        expected, expected_states = run_on(reader_of(dense, objective), batch)
    found, states = run_on(reader_of(student, objective), batch)
    loss = objective(expected, found, batch).mean()
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
