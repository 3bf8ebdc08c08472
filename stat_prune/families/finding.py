"""From the description of a family to the blocks of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stat_prune.errors import ModelError, UnsupportedArchitectureError
from stat_prune.families.architecture import Attention, FeedForward
from stat_prune.families.registry import known_architecture, stacks_of
from stat_prune.model.blocks import Block, Producer
from stat_prune.model.projections import Projection, projection

#: Rows of the tensors of grouped matrix products have to be multiples of 16 bytes, which is so many
#: numbers of 16 bits.
GROUPED_PRODUCT_MULTIPLE = 8

_REMEDY = (
    "Correct the description, or upgrade transformers if the layers of this family have changed "
    f"({transformers.__version__} is installed)."
)


def find_blocks(model: PreTrainedModel) -> list[Block]:
    """All blocks of a model, layer by layer, the heads before the neurons.

    Raises
    ------
    UnsupportedArchitectureError
        If the family is unknown, or a layer lacks what its description names.
    ModelError
        If a layer that should be an ordinary linear one with its weights in one piece is not.
    """
    blocks: list[Block] = []
    stacks = stacks_of(model)
    number = 0
    for stack, layers in stacks:
        for index, layer in enumerate(layers):
            calls = 1 if stack.calls is None else stack.calls(model.config, index)
            common = {"layer": number, "mask": stack.mask, "calls": calls}
            finder = _Finder(model.config, layer, f"{stack.layers}.{index}", common)
            for attention in stack.attentions:
                key_mask = stacks[0][0].mask if attention.cross else stack.mask
                blocks += finder.heads(attention, key_mask)
            for feed_forward in stack.feed_forwards:
                blocks += finder.neurons(feed_forward)
            number += 1
    return blocks


def input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    """What turns tokens, or patches of images, into vectors; None where a class names none."""
    try:
        embeddings: nn.Module = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return embeddings


def token_embeddings(model: PreTrainedModel) -> nn.Embedding | None:
    """What turns token ids into vectors; None for a model that reads no text."""
    embeddings = input_embeddings(model)
    return embeddings if isinstance(embeddings, nn.Embedding) else None


def embedding_projection(model: PreTrainedModel) -> nn.Linear | None:
    """What brings token embeddings to the width of the layers; None where they have it."""
    known = known_architecture(model)
    path = None if known is None else known.embedding_projection
    found = None if path is None else dict(model.base_model.named_modules()).get(path)
    return found if isinstance(found, nn.Linear) else None


class _Finder:
    """The blocks of one layer; what they have in common is `common`."""

    def __init__(
        self, config: PreTrainedConfig, layer: nn.Module, path: str, common: dict[str, Any]
    ) -> None:
        self.config, self.layer, self.path, self.common = config, layer, path, common

    def heads(self, attention: Attention, key_mask: str) -> Iterator[Block]:
        if not self._has(attention.output, attention.optional):
            return
        paths = (attention.query, attention.key, attention.value)
        rows = sum(len(self._linear(path).weight) for path in dict.fromkeys(paths))
        output, query = self._linear(attention.output), self._linear(attention.query)
        module = self.layer.get_submodule(attention.module)
        head_size = int(getattr(module, attention.head_size))
        num_heads = output.weight.shape[1] // head_size
        once, per_token = (attention.position_macs or _no_macs)(self.config)
        block = Block(
            name=f"{self.path}.{attention.name}",
            kind="heads",
            consumer=f"{self.path}.{attention.output}",
            producers=(
                *self._of_positions(attention),
                *self._producers(paths, ("unit", "group", "group"), attention.interleaved),
            ),
            num_units=num_heads,
            unit_size=head_size,
            # Of the rows that are no query, half are keys and half are values.
            num_groups=(rows // head_size - num_heads) // 2,
            input_size=query.weight.shape[1],
            output_size=len(output.weight),
            consumer_bias=output.bias is not None,
            attributes={f"{self.path}.{attention.module}": attention.counts},
            part=attention.name,
            adds_to_stream=attention.adds_to_stream,
            stream_after=self._stream_after(attention),
            fixed=attention.fixed or _nothing_left(num_heads, f"{self.path}.{attention.name}"),
            removable=attention.removable,
            key_mask=key_mask,
            position_macs=(once * head_size, per_token * head_size),
            position_bias=attention.position_bias,
            **self.common,
        )
        query_key = getattr(module, "query_key_size", None)
        if query_key is not None:
            num_groups = (rows - num_heads * query_key) // (query_key + head_size)
            block = replace(block.with_dims(query_key, head_size), num_groups=num_groups)
        yield block

    def neurons(self, feed_forward: FeedForward) -> Iterator[Block]:
        if not self._has(feed_forward.output, feed_forward.optional):
            return
        if not feed_forward.experts_per_token:
            yield self._neurons(feed_forward, self.path)
            return
        owner, _, _ = feed_forward.output.rpartition(".")
        num_experts = len(_parameter(self.layer, feed_forward.output))
        usage = getattr(self.config, feed_forward.experts_per_token) / num_experts
        for expert in range(num_experts):
            yield self._neurons(
                feed_forward,
                f"{self.path}.expert{expert}",
                f".{expert}",
                expert_of=f"{self.path}.{owner}",
                usage=usage,
                multiple=GROUPED_PRODUCT_MULTIPLE,
            )

    def _neurons(
        self, feed_forward: FeedForward, name: str, expert: str = "", **fields: Any
    ) -> Block:
        inputs = [f"{path}{expert}" for path in feed_forward.inputs]
        consumer = f"{feed_forward.output}{expert}"
        output = self._linear(consumer)
        owner, _, _ = feed_forward.output.rpartition(".")
        num_neurons = output.weight.shape[1]
        return Block(
            name=f"{name}.{feed_forward.name}",
            kind="neurons",
            consumer=f"{self.path}.{consumer}",
            producers=self._producers(inputs, ["unit" for _ in inputs], False),
            num_units=num_neurons,
            unit_size=1,
            num_groups=num_neurons,
            input_size=self._linear(inputs[0]).weight.shape[1],
            output_size=len(output.weight),
            consumer_bias=output.bias is not None,
            attributes={f"{self.path}.{owner}": feed_forward.counts} if feed_forward.counts else {},
            part=feed_forward.name,
            fixed=_nothing_left(num_neurons, f"{name}.{feed_forward.name}"),
            removable=not expert,
            adds_to_stream=feed_forward.adds_to_stream,
            stream_after=self._stream_after(feed_forward),
            **self.common,
            **fields,
        )

    def _producers(
        self, paths: Sequence[str], parts: Sequence[Literal["unit", "group"]], interleaved: bool
    ) -> tuple[Producer, ...]:
        """One a path: what is named several times makes several parts."""
        return tuple(
            Producer(
                path=f"{self.path}.{path}",
                parts=tuple(p for name, p in zip(paths, parts, strict=True) if name == path),
                interleaved=interleaved,
                bias=self._linear(path).bias is not None,
            )
            for path in dict.fromkeys(paths)
        )

    def _of_positions(self, attention: Attention) -> Iterator[Producer]:
        for path in attention.position_producers:
            if self._has(path, optional=True):
                bias = self._linear(path).bias is not None
                yield Producer(f"{self.path}.{path}", ("unit",), bias=bias, of_positions=True)

    def _stream_after(self, part: Attention | FeedForward) -> str | None:
        return None if part.stream_after is None else f"{self.path}.{part.stream_after}"

    def _has(self, path: str, optional: bool) -> bool:
        """Whether the layer has the consumer of a part.

        Raises
        ------
        UnsupportedArchitectureError
            If it has not, and the part is not optional.
        """
        owner: Any = self.layer
        for name in path.split("."):
            owner = getattr(owner, name, None)
        if owner is None and not optional:
            raise UnsupportedArchitectureError(
                f"{self.path} ({type(self.layer).__name__}) has no {path!r}, which the description "
                f"of model type {self.config.model_type!r} names. {_REMEDY}"
            )
        return owner is not None

    def _linear(self, path: str) -> Projection:
        where = f"{self.path}.{path}"
        try:
            found = projection(self.layer, path)
        except AttributeError as error:
            raise UnsupportedArchitectureError(
                f"{self.path} ({type(self.layer).__name__}) has no linear layer {path!r}, which "
                f"the description of model type {self.config.model_type!r} names: {error}. "
                f"{_REMEDY}"
            ) from error
        _check(found, where)
        return found


def _nothing_left(num_units: int, name: str) -> str:
    """Why no unit of a block can leave, where that is because all have left."""
    return "" if num_units else f"Nothing is left of {name}."


def _no_macs(_config: PreTrainedConfig) -> tuple[float, float]:
    return 0.0, 0.0


def _parameter(layer: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    parameter = getattr(layer.get_submodule(owner), name)
    assert isinstance(parameter, Tensor)
    return parameter


def _check(found: Projection, where: str) -> None:
    """Refuse layers that are not linear ones of full precision, in one piece."""
    module, weight = found.module, found.weight
    kind = type(module)
    # Classes of transformers itself compute what nn.Linear does (FalconLinear).
    plain = kind in (nn.Linear, Conv1D) or kind.__module__.startswith("transformers.models.")
    if not plain or not weight.dtype.is_floating_point:
        raise ModelError(
            f"{where} is a {kind.__module__}.{kind.__name__} with {weight.dtype} weights, not a "
            "plain torch.nn.Linear. Prune the full-precision model first (merge adapters, load "
            "without a quantization config) and quantize the result; a layer of your own that "
            "computes more than a linear map cannot be pruned."
        )
    if not _is_plain_tensor(weight):
        raise ModelError(
            f"The weights of {where} are no plain tensor but a {type(weight).__module__}."
            f"{type(weight).__name__}: quantized, or sharded over devices. Prune the "
            "full-precision model, loaded on one device without tensor parallelism, and quantize "
            "the result."
        )


def _is_plain_tensor(weight: Tensor) -> bool:
    """Whether a weight, or a view of it, is of no subclass that shards or quantizes."""
    return type(weight) in (torch.Tensor, nn.Parameter)
