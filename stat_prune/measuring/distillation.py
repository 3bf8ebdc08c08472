"""What the student is told by the dense model: its outputs and its hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.data.batching import token_mask
from stat_prune.errors import SettingsError
from stat_prune.families import token_embeddings, transformer_layers
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import recorded
from stat_prune.model.running import Batch, model_inputs

_LOGITS = ("logits", "start_logits", "end_logits")

LayerMap = tuple[tuple[int, int], ...]


def check_teacher(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse a teacher whose outputs cannot be compared with the student's.

    Raises
    ------
    SettingsError
        If it has another vocabulary, another number of classes, or another head.
    """
    tables = [token_embeddings(one) for one in (student, teacher)]
    ours, theirs = (0 if one is None else len(one.weight) for one in tables)
    if ours != theirs:
        raise SettingsError(
            f"The teacher has a vocabulary of {theirs} tokens and the model one of {ours}. Both "
            "must read the same token ids: take the model's own dense checkpoint as the teacher."
        )
    names = [_stock_name(one) for one in (student, teacher)]
    if names[0].partition("For")[2] != names[1].partition("For")[2]:
        raise SettingsError(
            f"The teacher is a {names[1]} and the model a {names[0]}: their outputs differ in "
            "kind. Load the teacher with the same head."
        )
    if student.config.num_labels != teacher.config.num_labels:
        raise SettingsError(
            f"The teacher has {teacher.config.num_labels} classes and the model "
            f"{student.config.num_labels}. Load a teacher of the same task."
        )


def _stock_name(model: PreTrainedModel) -> str:
    return type(model).__name__


def layer_map_of(
    student: PreTrainedModel, teacher: PreTrainedModel, given: LayerMap | None
) -> LayerMap:
    """Pairs of layers, of student and teacher, whose outputs are compared.

    Raises
    ------
    SettingsError
        If a layer that is named does not exist, or the hidden sizes differ.
    """
    ours, theirs = (len(transformer_layers(one)) for one in (student, teacher))
    if student.config.hidden_size != teacher.config.hidden_size:
        raise SettingsError(
            f"The hidden states of the teacher have {teacher.config.hidden_size} dimensions and "
            f"the model's {student.config.hidden_size}. Pass hidden_weight=0."
        )
    if given is None:
        return tuple((i, round((i + 1) * theirs / ours) - 1) for i in range(ours))
    for mine, other in given:
        if not (0 <= mine < ours and 0 <= other < theirs):
            raise SettingsError(
                f"layer_map has the pair ({mine}, {other}), but the model has {ours} layers and "
                f"the teacher {theirs}, numbered from 0."
            )
    return given


def logit_distance(student: Any, teacher: Any, batch: Batch, temperature: float) -> Tensor | None:
    """``T^2 KL(teacher || student)`` at temperature T, mean over positions; None without a head.

    Hinton, Vinyals and Dean 2015. Padding does not count; tokens beside masked ones do, as all of
    them teach. The predictions of a regression are compared by their squared difference, at no
    temperature.

    Parameters
    ----------
    student, teacher : ModelOutput
    batch : mapping of str to Tensor
    temperature : float
    """
    present = [name for name in _LOGITS if name in student]
    if not present:
        return None
    if student[present[0]].shape[-1] == 1:
        temperature = 1.0
    expected, found = (
        {name: output[name] / temperature for name in present} for output in (teacher, student)
    )
    every = {name: value for name, value in batch.items() if name != "masked_tokens"}
    return temperature**2 * output_distance(expected, found, every).mean().float()


def hidden_distance(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    batch: Batch,
    layer_map: LayerMap,
    dimensions: Tensor | None = None,
) -> Tensor:
    """Squared distance of hidden states relative to the teacher's squared norm, mean over layers.

    CoFi (Xia et al. 2022) takes the mean squared error; relative to the norm, one weight serves
    families whose residual streams differ in scale. Padding does not count.

    Parameters
    ----------
    student, teacher : sequence of Tensor of shape (batch, sequence, hidden size)
        What the layers return.
    batch : mapping of str to Tensor
    layer_map : tuple of pairs of int
    dimensions : Tensor of shape (hidden size of the teacher,), optional
        How much each hidden dimension counts. A student that has fewer has those that count.
    """
    errors = []
    for mine, other in layer_map:
        found, expected = student[mine].float(), teacher[other].float()
        weights = torch.ones(1, device=found.device) if dimensions is None else dimensions
        if found.shape[-1] < expected.shape[-1]:
            expected, weights = expected[..., weights > 0], weights[weights > 0]
        real = token_mask(batch).to(found.device)
        error = ((found - expected).square() * weights)[real].sum()
        errors.append(error / (expected.square() * weights)[real].sum())
    return torch.stack(errors).mean()


def run_on(
    model: PreTrainedModel, batch: Batch, extra: Mapping[str, Tensor] | None = None
) -> tuple[Any, list[Tensor]]:
    """The model's output for a batch, and what each of its layers returned.

    Parameters
    ----------
    model : PreTrainedModel
    batch : mapping of str to Tensor
    extra : mapping of str to Tensor, optional
        Further inputs: labels.
    """
    device = next(model.parameters()).device
    layers = transformer_layers(model)
    with recorded(layers) as returned:
        output = model(**model_inputs(model, batch, device), **(extra or {}))
    first = [returned[layer] for layer in layers]
    return output, [one if isinstance(one, Tensor) else one[0] for one in first]
