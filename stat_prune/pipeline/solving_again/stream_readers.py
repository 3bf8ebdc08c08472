"""Producers that make up for a changed input, by least squares of the dense one on it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.data.batching import masks_in, token_mask
from stat_prune.families import transformer_layers
from stat_prune.measuring.collectors import token_rows
from stat_prune.measuring.residual_stream import EnteringLayer, ResidualStream
from stat_prune.model.blocks import Block
from stat_prune.model.folded_consumer import FoldedConsumer, InputCorrection
from stat_prune.model.projections import projection
from stat_prune.model.running import Batch
from stat_prune.pipeline.solving_again.held_out_fit import HeldOutFit
from stat_prune.surgery.layerwise import SeenEnough, States, run_behind
from stat_prune.surgery.linear_layers import tell_readers


def correctable_producers(block: Block) -> list[str]:
    """Producers whose input can be corrected, by path.

    Not those of experts, whose tokens differ, nor of layers that share weights and so have an input
    for each of them; nor what reads positions.
    """
    if block.expert_of or block.calls > 1:
        return []
    return [one.path for one in block.producers if not one.of_positions]


def reading_as_dense(
    entering: EnteringLayer,
    folded: FoldedConsumer,
    dense: Sequence[ResidualStream],
    ridges: Sequence[float],
    *,
    num_held_out: int,
) -> tuple[FoldedConsumer, dict[str, float | None]]:
    """Let producers answer as they would to what they read in the dense model; in place, and told.

    With inputs X of the pruned model and differences ``E = X_dense - X``, X stands for ``X + X D``
    of least ``||X D - E||^2 + ridge ||diag(||X_:j||) D||^2``, centred where there is a bias.
    Without a ridge no weights would give a smaller error of what the producers make of it. Of
    several ridges that is taken whose D leaves least of E on sequences held out.

    Parameters
    ----------
    entering : EnteringLayer
        Of the pruned model, whose producers are changed.
    folded : FoldedConsumer
    dense : sequence of ResidualStream
        What the producers read in the dense model, batch by batch.
    ridges : sequence of float
    num_held_out : int
        So many of the last batches are held out.

    Returns
    -------
    FoldedConsumer
        With the corrections that were taken.
    dict of str to float or None
        The ridge by the path of the first of the layers that read the same; None where no change
        was best.
    """
    base, block = entering.model.base_model, folded.block
    groups = _reading_the_same(base, block, dense[0]) if len(folded.units) else []
    if not groups:
        return folded, {}
    fits = {
        paths: HeldOutFit(block.input_size, block.input_size, centred=biased)
        for paths, biased in groups
    }
    firsts = [paths[0] for paths in fits]
    for number, found in enumerate(entering.streams([], whole=False, readers=firsts)):
        judges = number >= len(entering.batches) - num_held_out
        for paths, fit in fits.items():
            mask = token_mask(entering.batches[number], _mask_of(block, paths[0]))
            (inputs,), (wanted,) = found.read[paths[0]], dense[number].read[paths[0]]
            _update(fit, inputs, wanted, mask, judges=judges)
    taken, readings = dict[str, float | None](), []
    for paths, fit in fits.items():
        taken[paths[0]], found_readings = _corrections(paths, fit, ridges)
        readings += found_readings
    folded = dataclasses.replace(folded, readings=tuple(readings))
    tell_readers(base, readings)
    return folded, taken


def head_reading_as_dense(
    dense: tuple[PreTrainedModel, Sequence[States]],
    pruned: tuple[PreTrainedModel, Sequence[States]],
    batches: Sequence[Batch],
    ridges: Sequence[float],
    *,
    num_held_out: int,
) -> tuple[list[InputCorrection], dict[str, float | None]]:
    """The same for the linear layers behind the last block, one after another: pooler, classifier.

    Parameters
    ----------
    dense, pruned : (PreTrainedModel, sequence of dict)
        With what the last layer of each stack returns on each batch; where that is not known, the
        layers are run. Those behind the last of `pruned` are changed.
    batches : sequence of mappings of str to Tensor
    ridges : sequence of float
    num_held_out : int
        So many of the last batches are held out.

    Returns
    -------
    list of InputCorrection
        By paths below the model.
    dict of str to float or None
        As of `reading_as_dense`.
    """
    (model, dense_states), (cut, states) = dense, pruned
    stays = set(head_layers(cut))  # a factored head is no linear layer
    paths = [path for path in head_layers(model) if path in stays]
    wanted = [_head_inputs(model, paths, *one) for one in zip(batches, dense_states, strict=True)]
    readings: list[InputCorrection] = []
    taken = dict[str, float | None]()
    called = [path for path in wanted[0] if all(len(one.get(path, ())) == 1 for one in wanted)]
    for path in called:
        layer = projection(cut, path)
        width = layer.weight.shape[1]
        fit = HeldOutFit(width, width, centred=layer.bias is not None)
        for number, (batch, state) in enumerate(zip(batches, states, strict=True)):
            (inputs,) = _head_inputs(cut, [path], batch, state, once=True)[path]
            judges = number >= len(batches) - num_held_out
            _update(fit, inputs, wanted[number][path][0], _mask_like(inputs, batch), judges=judges)
        taken[path], found = _corrections((path,), fit, ridges)
        tell_readers(cut, found)
        readings += found
    return readings, taken


def _update(
    fit: HeldOutFit, inputs: Tensor, wanted: Tensor, mask: Tensor | None, *, judges: bool
) -> None:
    mask = None if mask is None else mask.to(inputs.device)
    rows, wanted_rows = (token_rows(one.to(inputs), mask).float() for one in (inputs, wanted))
    fit.update(rows, wanted_rows - rows, judges=judges)


def _corrections(
    paths: tuple[str, ...], fit: HeldOutFit, ridges: Sequence[float]
) -> tuple[float | None, list[InputCorrection]]:
    """The ridge that was best, and what to make of it: nothing where none was."""
    ridge, change, shift = fit.best(ridges)
    if ridge is None:
        return None, []
    shift = None if shift is None else shift.float()
    return ridge, [InputCorrection(paths, change.float(), shift)]


def head_layers(model: PreTrainedModel) -> list[str]:
    """Linear layers outside of the transformer layers whose weight is nobody else's."""
    inside = {id(one) for layer in transformer_layers(model) for one in layer.modules()}
    holders = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}  # if offloaded
    return [
        path
        for path, module in model.named_modules()
        if type(module) is nn.Linear
        and id(module) not in inside
        and holders[id(module.weight)] == 1
        and f"{path}.weight" not in tied
    ]


def _head_inputs(
    model: PreTrainedModel,
    paths: Sequence[str],
    batch: Batch,
    states: States,
    *,
    once: bool = False,
) -> dict[str, list[Tensor]]:
    """What layers behind the last transformer layer read on a batch, as they are called.

    Where each is known to be called `once`, nothing is computed behind the last of them: the output
    of a language model's head is large.
    """
    layers = transformer_layers(model)
    found: dict[str, list[Tensor]] = {}
    behind: list[bool] = []

    def noting(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if behind:
                found.setdefault(path, []).append(args[0])
                if once and len(found) == len(paths):
                    raise SeenEnough

        return hook

    with ExitStack() as stack:
        passed = layers[-1].register_forward_hook(lambda *_: behind.append(True))
        stack.callback(passed.remove)
        for path in paths:
            hook = model.get_submodule(path).register_forward_pre_hook(noting(path))
            stack.callback(hook.remove)
        with suppress(SeenEnough):
            run_behind(model, batch, states)
    return found


def _mask_like(inputs: Tensor, batch: Batch) -> Tensor | None:
    """Which rows are of real tokens, where there is one for each token."""
    masks = [token_mask(batch, name) for name in reversed(masks_in(batch))]
    return next((mask for mask in masks if mask.shape == inputs.shape[:-1]), None)


def _reading_the_same(
    base: nn.Module, block: Block, seen: ResidualStream
) -> list[tuple[tuple[str, ...], bool]]:
    """Producers of a block by what they read, and whether they have a bias.

    Not those that are called more than once.
    """
    groups: dict[tuple[int, bool], list[str]] = {}
    biased = {one.path: one.bias for one in block.producers}
    for path in correctable_producers(block):
        calls = seen.read.get(path, [])
        if len(calls) == 1:
            groups.setdefault((id(calls[0]), biased[path]), []).append(path)
    return [(tuple(paths), bias) for (_, bias), paths in groups.items()]


def _mask_of(block: Block, path: str) -> str:
    """The entry of a batch that says which of a producer's tokens are real."""
    (parts,) = (one.parts for one in block.producers if one.path == path)
    return block.mask if "unit" in parts else block.key_mask
