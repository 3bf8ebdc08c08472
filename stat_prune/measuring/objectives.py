"""What a pruned model is to keep: distances of its output from the dense one's."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.data.batching import masks_in, token_mask
from stat_prune.errors import NonFiniteOutputsError, SettingsError
from stat_prune.model.running import Batch, Objective

#: Logits that are compared at a time, to bound the memory for float64 copies.
PIECE = 2**18

#: Bytes of the three float64 copies of them.
COMPARING_BYTES = 3 * 8 * PIECE

#: How far a mean of distances may be below 0.
_ROUNDING = 1e-6


def objective_named(objective: str | Objective | None) -> Objective:
    """The distance of a name; `output_distance` for None; a callable is returned as it is."""
    if objective is None:
        return output_distance
    return OBJECTIVES[objective] if isinstance(objective, str) else objective


def distances(objective: Objective, dense: Any, pruned: Any, batch: Batch) -> Tensor:
    """What an objective says of two outputs, all of it finite.

    Raises
    ------
    NonFiniteOutputsError
        Naming the output that is not finite where it counts.
    SettingsError
        If it returns something else than distances.
    """
    values = objective(dense, pruned, batch)
    _check_distances(objective, values)
    if bool(torch.isfinite(values).all()):
        return values
    for whose, output in (("dense", dense), ("pruned", pruned)):
        for name, value in output.items():
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                raise NonFiniteOutputsError(
                    f"The {whose} model's {name} on the calibration data hold "
                    f"{int(value.isnan().sum())} NaN and {int(value.isinf().sum())} infinite "
                    "entries, so that what pruning does to them is not known. Run the model in "
                    "float32 or bfloat16, or remove the examples; entries that are masked with "
                    "infinity have to be so before and after."
                )
    raise NonFiniteOutputsError(
        f"{getattr(objective, '__name__', 'The objective')}: the distance of finite outputs is "
        f"{float(values[~torch.isfinite(values)][0])}. Run the model in float32, or pass another "
        "objective."
    )


def _check_distances(objective: Objective, values: Any) -> None:
    """Refuse what a function of the user's returns, where no distance can be read from it."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else ""
        wrong = f"got {got or type(values).__name__}"
    elif not values.numel():
        wrong = "got an empty one"
    elif float(values.sum()) < -_ROUNDING * values.numel():
        wrong = f"got a mean of {float(values.mean()):.3g}"
    else:
        return
    raise SettingsError(
        f"{getattr(objective, '__name__', 'The objective')} must return a tensor of distances, "
        f"floating point and no less than 0, one for each value that counts; {wrong}."
    )


def reader_of(model: PreTrainedModel, objective: Objective) -> PreTrainedModel:
    """The model whose output an objective reads: that without a head for what is inside."""
    return cast(PreTrainedModel, model.base_model) if objective in OF_BASE_MODEL else model


def output_distance(dense: Any, pruned: Any, batch: Batch) -> Tensor:
    """The default objective of each head class.

    - Classes (sequence or token classification, question answering, language models):
      Kullback-Leibler divergence from the dense distribution, in nats; at every token that is
      not padding where there is one distribution a token; where tokens are masked (the batch's
      ``masked_tokens``), at these, and none at the others, which are there to be copied.
    - Regression (one output): squared difference.
    - No head: squared error of the final hidden state of every token that is not padding (of the
      decoder, where there is one; of every patch of an image), relative to the dense state's
      squared norm.
    - Two towers: the same of both embeddings, added up.

    Equal infinities, as of classes that are masked, are no distance; anything else that is not
    finite gives one that is not (`distances` refuses it).

    Returns
    -------
    Tensor of shape (positions,), floating point
    """
    if "logits" not in dense and "start_logits" not in dense:
        if "image_embeds" in dense and "text_embeds" in dense:
            names = ("image_embeds", "text_embeds")
            return sum(
                (relative_error(dense[name], pruned[name]) for name in names), torch.zeros(())
            )
        return _of_tokens(relative_error(dense[0], pruned[0]), batch)
    return logits_distance(dense, pruned, batch)


def logits_distance(dense: Any, pruned: Any, batch: Batch) -> Tensor:
    """Divergence of classes, or squared difference of a regression, as `output_distance` has it.

    Raises
    ------
    SettingsError
        If the model has no head.
    """
    if "start_logits" in dense:
        mask = _mask_of(dense["start_logits"], batch)
        hidden = torch.zeros_like(dense["start_logits"]).bool() if mask is None else ~mask
        start, end = (
            _divergence(*(one[name].masked_fill(hidden, -torch.inf) for one in (dense, pruned)))
            for name in ("start_logits", "end_logits")
        )
        return start + end
    before, after = _entries(dense, pruned, "logits", "logits")
    if before.shape[-1] == 1:
        before, after = _levelled(before.float(), after.float())
        distance = (after - before).square().squeeze(-1)
    else:
        distance = _divergence(before, after)
    masked = batch.get("masked_tokens")
    if masked is not None and masked.shape == distance.shape:
        distance = distance * masked.to(distance)
    return _of_tokens(distance, batch)


def states_distance(dense: Any, pruned: Any, batch: Batch) -> Tensor:
    """Squared relative error of every real token's final hidden state, whatever head there is."""
    states = _entries(dense, pruned, "last_hidden_state", "hidden-states")
    return _of_tokens(relative_error(*states), batch)


def pooled_distance(dense: Any, pruned: Any, batch: Batch) -> Tensor:
    """Squared relative error of the mean of the real tokens' final hidden states: an embedding."""
    states = _entries(dense, pruned, "last_hidden_state", "pooled")
    mask = _mask_of(states[0][..., 0], batch)
    if mask is None:
        return relative_error(*(one.float().mean(1) for one in states))
    share = (mask / mask.sum(1, keepdim=True))[..., None]
    return relative_error(*((one.float() * share).sum(1) for one in states))


OBJECTIVES: dict[str, Objective] = {
    "logits": logits_distance,
    "hidden-states": states_distance,
    "pooled": pooled_distance,
}

#: Objectives that the head has no part in.
OF_BASE_MODEL: tuple[Objective, ...] = (states_distance, pooled_distance)


def _entries(dense: Any, pruned: Any, name: str, objective: str) -> tuple[Tensor, Tensor]:
    if name not in dense:
        raise SettingsError(
            f"objective={objective!r} needs {name}, but the model's output has "
            f"{', '.join(dense.keys())}. Leave the objective out, or pass a callable."
        )
    return dense[name], pruned[name]


def relative_error(dense: Tensor, pruned: Tensor) -> Tensor:
    """Squared error of vectors along the last dimension, relative to their squared norm."""
    before, after = dense.float(), pruned.float()
    return (after - before).square().sum(-1) / before.square().sum(-1).clamp_min(1e-30)


def _of_tokens(distance: Tensor, batch: Batch) -> Tensor:
    """Values of real tokens; all, where there is one value a sequence."""
    mask = _mask_of(distance, batch)
    return distance if mask is None else distance[mask]


def _mask_of(values: Tensor, batch: Batch) -> Tensor | None:
    """What says which of some outputs are of real tokens; the decoder's before the encoder's."""
    for name in reversed(masks_in(batch)):
        if batch[name].shape == values.shape:
            return token_mask(batch, name).to(values.device)
    return None


def _divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """Kullback-Leibler divergence along the last dimension, in float64.

    Nearly equal distributions differ by less than float32 can sum.
    """
    if torch.is_grad_enabled() and (dense.requires_grad or pruned.requires_grad):
        dense, pruned = _levelled(dense, pruned)
        expected, found = (one.double().log_softmax(-1) for one in (dense, pruned))
        return (expected.exp() * (expected - found)).sum(-1).clamp_min(0)
    return _divergence_in_pieces(dense, pruned)


def _divergence_in_pieces(dense: Tensor, pruned: Tensor) -> Tensor:
    """The same without gradients, for large vocabularies: all pieces in the same memory."""
    shape, size = dense.shape[:-1], dense.shape[-1]
    pairs = dense.reshape(-1, size), pruned.reshape(-1, size)
    rows = max(min(PIECE // size, len(pairs[0])), 1)
    logits, expected, found = dense.new_empty(3, rows, size, dtype=torch.float64)
    distances = []
    for before, after in zip(*(one.split(rows) for one in pairs), strict=True):
        before, after = _levelled(before, after)
        held = slice(len(before))
        torch.log_softmax(logits[held].copy_(before), -1, out=expected[held])
        torch.log_softmax(logits[held].copy_(after), -1, out=found[held])
        found[held].neg_().add_(expected[held])
        distances.append(expected[held].exp_().mul_(found[held]).sum(-1))
    return torch.cat(distances).reshape(shape).clamp_min(0)


def _levelled(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Equal infinities as the largest or smallest finite value; the same tensors without any."""
    # A finite sum proves that every entry is, and takes no memory.
    if bool(torch.isfinite(before.detach().sum(dtype=torch.float64))):
        return before, after
    same = before.isinf() & (before == after)
    return torch.where(same, before.nan_to_num(), before), torch.where(
        same, after.nan_to_num(), after
    )
