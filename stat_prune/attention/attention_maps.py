"""Attention weights, layer by layer, as a model computes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.batching import token_mask
from stat_prune.errors import ModelError
from stat_prune.families import find_blocks
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import input_device
from stat_prune.model.running import Batch, evaluating, model_inputs

#: Takes a block, a sequence's number in its batch, the weights of shape (heads, n, n) of its n
#: tokens without padding, and which keys each of them may see, of shape (n, n).
Receiver = Callable[[Block, int, Tensor, Tensor], None]


def run_with_attention(model: PreTrainedModel, batch: Batch, receive: Receiver) -> None:
    """One forward pass; every layer's weights go to `receive` and are forgotten.

    For the time of the pass the model computes attention eagerly, as the fused kernels return no
    weights.

    Parameters
    ----------
    model : PreTrainedModel
        Unchanged when this returns.
    batch : mapping of str to Tensor
    receive : callable
        Called once a layer and sequence.

    Raises
    ------
    ModelError
        If an attention layer returns no weights.
    """
    blocks = [block for block in find_blocks(model) if block.kind == "heads"]
    base = model.base_model
    device = input_device(base)
    tokens = [row.nonzero().squeeze(1) for row in token_mask(batch).to(device)]
    handles = [
        _attention_module(base, block).register_forward_hook(
            _hook(block, tokens, receive), with_kwargs=True
        )
        for block in blocks
    ]
    try:
        with evaluating(model), _eager_attention(model):
            base(**model_inputs(base, batch, device), **_request(base, blocks))
    finally:
        for handle in handles:
            handle.remove()


def check_reads_one_text(model: PreTrainedModel, batch: Batch) -> None:
    """Refuse models of images, of sound, and with several stacks that read different things.

    Raises
    ------
    ModelError
    """
    blocks = [block for block in find_blocks(model) if block.kind == "heads"]
    one_text = all(block.mask == block.key_mask == "attention_mask" for block in blocks)
    if not one_text or "input_ids" not in batch:
        raise ModelError(
            f"{type(model).__name__} reads something else than one text, and the statistics of "
            "attention are of tokens that attend to tokens of the same text. Look at its text "
            "encoder or decoder alone."
        )


def attention_maps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str | tuple[str, str]
) -> tuple[list[str], dict[str, Tensor]]:
    """Every head's attention on one text.

    Parameters
    ----------
    model : PreTrainedModel
        Dense or pruned.
    tokenizer : PreTrainedTokenizerBase
    text : str or pair of str

    Returns
    -------
    tokens : list of str
        As the tokenizer writes them.
    maps : dict of str to Tensor of shape (heads, n, n), float64, on the CPU
        By block name; row i holds the weights with which token i attends. Where layers share
        their weights (ALBERT), those of the last layer.

    Raises
    ------
    ModelError
        If the model reads anything but one text, or returns no weights.
    """
    pair = (text,) if isinstance(text, str) else text
    batch = tokenizer(*pair, return_tensors="pt", truncation=True)
    check_reads_one_text(model, batch)
    maps: dict[str, Tensor] = {}

    def keep(block: Block, _index: int, weights: Tensor, _visible: Tensor) -> None:
        maps[block.name] = weights.cpu()

    run_with_attention(model, batch, keep)
    return list(tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())), maps


def _attention_module(base: nn.Module, block: Block) -> nn.Module:
    """The module that remembers the number of heads, which is the one that attends."""
    return base.get_submodule(next(iter(block.attributes)))


def _request(base: nn.Module, blocks: Sequence[Block]) -> dict[str, bool]:
    """What makes attention return its weights, where its class does so only when asked to."""
    asked = any(
        "output_attentions" in inspect.signature(_attention_module(base, block).forward).parameters
        for block in blocks
    )
    return {"output_attentions": True} if asked else {}


def _hook(block: Block, tokens: Sequence[Tensor], receive: Receiver) -> Callable[..., None]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.ndim != 4:
            raise ModelError(
                f"The attention of {block.name} ({type(module).__name__}) returns no weights, so "
                "that its heads cannot be looked at. Use a model class of transformers whose "
                'attention can be computed with attn_implementation="eager".'
            )
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        visible = _visible(bound.get("attention_mask"), weights)
        for index, own in enumerate(tokens):
            kept = own.to(weights.device)
            receive(
                block,
                index,
                weights[index][:, kept][:, :, kept].double(),
                visible[index][kept][:, kept],
            )

    return hook


def _visible(mask: Tensor | None, weights: Tensor) -> Tensor:
    """Which keys a query may see: (batch, queries, keys), bool; padding is left out elsewhere."""
    batch, _, queries, keys = weights.shape
    if mask is None:
        return torch.ones(batch, queries, keys, dtype=torch.bool, device=weights.device)
    if mask.is_floating_point():  # added to the logits: hugely negative where nothing is seen
        mask = mask > torch.finfo(mask.dtype).min / 2
    return mask[:, 0, :, :keys].bool().to(weights.device).expand(batch, queries, keys)


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention that returns its weights inside; the model's own again outside."""
    # Not by `set_attn_implementation`, which leaves out classes that look at the config themselves.
    own = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = own
