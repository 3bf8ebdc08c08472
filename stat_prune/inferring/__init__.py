"""Models of families that nobody described: their blocks are found by rules, and proven.

`infer_architecture` is what `stat_prune.prune` does for them by itself. The rules (`rules`,
`naming`) may guess wrong; no guess is used that a `proof` on a copy of the model does not confirm.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.errors import InferredArchitectureWarning, UnsupportedArchitectureError
from stat_prune.families.architecture import Architecture, Attention, FeedForward
from stat_prune.families.registry import (
    describing,
    known_architecture,
    remember,
    supported_model_types,
)
from stat_prune.inferring.config_fields import with_config_fields
from stat_prune.inferring.proof import failure_of
from stat_prune.inferring.rules import StackGuess, guess_stacks
from stat_prune.model.dispatched import is_dispatched, shared_copy
from stat_prune.model.running import evaluating

#: Of the sequences that a proof computes with.
BATCH, LENGTH = 2, 12


def describe(model: PreTrainedModel) -> None:
    """See to it that `stat_prune.families.architecture_of` knows a model.

    That of a family which is not registered is inferred, with one `InferredArchitectureWarning`.

    Raises
    ------
    UnsupportedArchitectureError
        If ``model.config.model_type`` is not registered and the blocks could not be inferred.
    """
    if known_architecture(model) is not None:
        return
    try:
        architecture = infer_architecture(model)
    except UnsupportedArchitectureError as error:
        raise UnsupportedArchitectureError(
            f"{error} Registered model types: {', '.join(supported_model_types())}."
        ) from error
    _warn_of_inferred(model, architecture)
    remember(model, architecture)


def _warn_of_inferred(model: PreTrainedModel, architecture: Architecture) -> None:
    """Say what was found, and what stays."""
    stacks = (architecture, *architecture.other_stacks)
    found, reasons = [], []
    for stack in stacks:
        for attention in stack.attentions:
            if attention.fixed:
                reasons.append(attention.fixed)
            else:
                found.append(f"the heads read by {stack.layers}.*.{attention.output}")
        found += [f"the neurons read by {stack.layers}.*.{f.output}" for f in stack.feed_forwards]
    warnings.warn(
        f"The blocks of {type(model).__name__} (model_type {model.config.model_type!r}, which is "
        f"not registered) were inferred and proven on a copy: {', '.join(found)}. "
        f"{' '.join(reasons)}{' ' if reasons else ''}"
        "stat_prune.register_architecture(...) describes the family for good.",
        InferredArchitectureWarning,
        stacklevel=2,
    )


def infer_architecture(model: PreTrainedModel) -> Architecture:
    """The description of a model whose family is not registered, guessed and then proven.

    Heads and neurons are looked for by the names and shapes of linear layers. A guess holds if, on
    a copy of the model with random weights, in single precision at least, units can change places,
    and duplicates of others can be cut away, with the same output to 1e-4, with the cache of keys
    and values too. Heads that fail are described as `fixed`: they stay. The model
    given is unchanged.

    Parameters
    ----------
    model : PreTrainedModel
        That reads text.

    Returns
    -------
    Architecture
        To be looked at, changed, or registered (`register_architecture`).

    Raises
    ------
    UnsupportedArchitectureError
        If no guess holds; the message says which rule or which proof failed.
    """
    config: Any = model.config
    try:
        with evaluating(model):
            return _inferred(model, str(config.model_type))
    except UnsupportedArchitectureError as error:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} is of a family (model_type {config.model_type!r}) that is not "
            f"described, and its blocks could not be inferred: {error}. Describe where its linear "
            "layers are: stat_prune.register_architecture(stat_prune.Architecture(...)); "
            "docs/architectures.md has an example."
        ) from error


def _inferred(model: PreTrainedModel, model_type: str) -> Architecture:
    _check_reads_text(model)
    guesses = guess_stacks(model.base_model)
    inputs = _inputs(model)
    stacks = []
    for guess, fields in zip(guesses, _fields_of_stacks(model, guesses), strict=True):
        stack = Architecture((model_type,), guess.path, (), (), **fields)
        attentions = [_proven_heads(model, stack, one, inputs) for one in guess.attentions]
        for feed_forward in guess.feed_forwards:
            _prove_neurons(model, stack, feed_forward, inputs)
        stacks.append(
            replace(
                stack,
                attentions=tuple(attentions),
                feed_forwards=tuple(guess.feed_forwards),
            )
        )
    architecture = replace(stacks[0], other_stacks=tuple(stacks[1:]))
    failure = _failure(model, architecture, inputs)
    if failure is not None:
        raise UnsupportedArchitectureError(f"all blocks cut at once: {failure}")
    return with_config_fields(model, architecture)


def _check_reads_text(model: PreTrainedModel) -> None:
    parameters = inspect.signature(model.base_model.forward).parameters
    if "input_ids" not in parameters or model.main_input_name != "input_ids":
        raise UnsupportedArchitectureError(
            f"it reads {model.main_input_name!r}, and the rules are for models of text"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedArchitectureError("its weights are not in memory, so no proof is possible")
    if is_dispatched(model):
        raise UnsupportedArchitectureError(
            "it has hooks of accelerate (device_map), and only a plain model can be proven; infer "
            "on one with fewer layers, and register what is found"
        )


def _fields_of_stacks(
    model: PreTrainedModel, guesses: list[StackGuess]
) -> Iterable[dict[str, Any]]:
    """What is known of each stack beside its parts: one stack, or an encoder and a decoder."""
    paths = [guess.path for guess in guesses]
    if len(guesses) == 1:
        yield {
            "causal": _is_causal(model),
            "positions_after_padding": _positions_after_padding(model.base_model),
        }
        return
    behind_encoder = getattr(model.config, "is_encoder_decoder", False)
    if not (behind_encoder and len(paths) == 2 and "encoder" in paths[0]):
        raise UnsupportedArchitectureError(
            f"it has several lists of layers, {', '.join(paths)}, and is no encoder with a decoder"
        )
    yield {}
    yield {"causal": True, "mask": "decoder_attention_mask"}


def _positions_after_padding(base_model: nn.Module) -> bool:
    return any(
        "position" in path and isinstance(module, nn.Embedding) and module.padding_idx is not None
        for path, module in base_model.named_modules()
    )


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Token ids that are no padding."""
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = model.get_input_embeddings()
    vocabulary = len(embeddings.weight)
    padding = getattr(model.config, "pad_token_id", None)
    allowed = torch.tensor([i for i in range(min(vocabulary, 4096)) if i != padding])
    names = ["input_ids"]
    if getattr(model.config, "is_encoder_decoder", False):
        names.append("decoder_input_ids")
    return {
        name: allowed[torch.randint(len(allowed), (BATCH, LENGTH), generator=generator)].to(
            model.device
        )
        for name in names
    }


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Whether what is said of a token does not depend on the one after it."""
    base: Any = shared_copy(model).base_model
    ids = _inputs(model)["input_ids"]
    others = torch.cat([ids[:, :-1], ids[:, -1:].flip(0)], 1)
    try:
        first, second = (base(input_ids=one)[0][:, :-1].double() for one in (ids, others))
    except Exception as error:  # whatever a forward pass of any model raises
        raise UnsupportedArchitectureError(
            f"on token ids alone, {type(error).__name__} is raised: {error}"
        ) from error
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().mean()))


def _proven_heads(
    model: PreTrainedModel,
    stack: Architecture,
    variants: list[Attention],
    inputs: dict[str, Tensor],
) -> Attention:
    """The first variant that holds; if none does, heads that stay, with the reason."""
    failures = []
    for variant in variants:
        failure = _failure(model, replace(stack, attentions=(variant,)), inputs)
        if failure is None:
            return variant
        failures.append(failure)
    reason = (
        f"The heads of {type(model).__name__} stay: the rules found them at {variants[0].module!r} "
        f"of its layers, but {failures[0]}."
    )
    return replace(variants[0], fixed=reason)


def _prove_neurons(
    model: PreTrainedModel,
    stack: Architecture,
    feed_forward: FeedForward,
    inputs: dict[str, Tensor],
) -> None:
    failure = _failure(model, replace(stack, feed_forwards=(feed_forward,)), inputs)
    if failure is not None:
        raise UnsupportedArchitectureError(
            f"the rules found neurons from {' and '.join(map(repr, feed_forward.inputs))} to "
            f"{feed_forward.output!r} in {stack.layers!r}, but {failure}"
        )


def _failure(
    model: PreTrainedModel, architecture: Architecture, inputs: dict[str, Tensor]
) -> str | None:
    with describing(model, architecture):
        return failure_of(model, inputs)
