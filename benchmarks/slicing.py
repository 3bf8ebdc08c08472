"""Rotating and slicing the residual stream of a decoder, for SliceGPT."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.data.batching import token_mask
from stat_prune.errors import NonFiniteActivationsError
from stat_prune.families import transformer_layers
from stat_prune.linalg import Moments, NonFiniteError
from stat_prune.model.running import Batch, evaluating, model_inputs


class RootMeanSquare(nn.Module):
    """RMSNorm without its scale; the mean is over the dense size, however many are left."""

    def __init__(self, hidden_size: int, epsilon: float) -> None:
        super().__init__()
        self.hidden_size, self.epsilon = hidden_size, epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension, in float32."""
        wide = hidden_states.float()
        mean_square = wide.square().sum(-1, keepdim=True) / self.hidden_size
        return (wide * torch.rsqrt(mean_square + self.epsilon)).to(hidden_states.dtype)


class SlicedLayer(nn.Module):
    """A decoder layer whose residual connections change the basis."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.attention_shortcut = _identity_like(layer.input_layernorm.weight)
        self.mlp_shortcut = _identity_like(layer.post_attention_layernorm.weight)

    def forward(self, hidden_states: Tensor, **context: Any) -> Tensor:
        """As the stock layers', with rotated shortcuts."""
        read = self.input_layernorm(hidden_states)
        attended = self.self_attn(hidden_states=read, **context)[0]
        hidden_states = self.attention_shortcut(hidden_states) + attended
        read = self.post_attention_layernorm(hidden_states)
        return self.mlp_shortcut(hidden_states) + self.mlp(read)


@dataclass(frozen=True)
class Segment:
    """What lies between two bases: a norm, the layers that read it, and what writes back.

    Attributes
    ----------
    owner : SlicedLayer
    norm_name : str
        Attribute of `owner`.
    readers : list of nn.Linear
    writer : nn.Linear
        Its output joins the residual stream.
    shortcut : nn.Linear
        What the residual stream itself goes through.
    """

    owner: Any
    norm_name: str
    readers: list[nn.Linear]
    writer: nn.Linear
    shortcut: nn.Linear

    @property
    def norm(self) -> RootMeanSquare:
        """Looked up, as it is replaced on the way."""
        return getattr(self.owner, self.norm_name)


def segments_of(model: PreTrainedModel) -> Iterator[Segment]:
    """Attention and feed-forward network of each sliced layer."""
    layer: Any
    for layer in transformer_layers(model):
        attention, mlp = layer.self_attn, layer.mlp
        queries = [attention.q_proj, attention.k_proj, attention.v_proj]
        yield Segment(layer, "input_layernorm", queries, attention.o_proj, layer.attention_shortcut)
        gates = [mlp.gate_proj, mlp.up_proj]
        yield Segment(layer, "post_attention_layernorm", gates, mlp.down_proj, layer.mlp_shortcut)


@torch.no_grad()
def sliced_copy(
    model: PreTrainedModel, batches: Sequence[Batch], dimension: int
) -> PreTrainedModel:
    """Rotate and slice a copy, from the embeddings to the head.

    Each basis is that of the signal in the network as it is sliced so far. What comes later is
    still in the dense basis, to which the last shortcut leads back: the model runs at every step.
    """
    sliced: Any = copy.deepcopy(model)
    layers = sliced.base_model.layers
    for index, layer in enumerate(layers):
        layers[index] = SlicedLayer(layer).train(layer.training)
    _free_the_head(sliced)
    segments = list(segments_of(sliced))
    for segment in segments:
        _absorb_scale(segment.owner, segment.norm_name, segment.readers)
    _absorb_scale(sliced.base_model, "norm", [sliced.lm_head])

    embeddings = sliced.get_input_embeddings()
    basis = _basis(sliced, segments[0].norm, batches, dimension)
    _set_weight(embeddings, embeddings.weight.double() @ basis)
    embeddings.embedding_dim = dimension
    norms = [segment.norm for segment in segments[1:]] + [sliced.base_model.norm]
    for segment, next_norm in zip(segments, norms, strict=True):
        _read_in(basis, segment.readers)
        _set_weight(segment.shortcut, basis)
        basis = _basis(sliced, next_norm, batches, dimension)
        _write_in(basis, segment.writer)
        _write_in(basis, segment.shortcut)
    _read_in(basis, [sliced.lm_head])
    return sliced


def _identity_like(scale: Tensor) -> nn.Linear:
    size = len(scale)
    shortcut = nn.Linear(size, size, bias=False, device=scale.device, dtype=scale.dtype)
    nn.init.eye_(shortcut.weight)
    return shortcut


def _free_the_head(model: Any) -> None:
    """A head of its own, which the norm's scale and another basis go into."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    model.config.tie_word_embeddings = False


def _absorb_scale(owner: Any, name: str, readers: Sequence[nn.Linear]) -> None:
    """Move a norm's scale into the layers that read it."""
    norm = getattr(owner, name)
    for reader in readers:
        _set_weight(reader, reader.weight.double() * norm.weight.double())
    setattr(owner, name, RootMeanSquare(len(norm.weight), norm.variance_epsilon))


def _basis(
    model: PreTrainedModel, norm: RootMeanSquare, batches: Sequence[Batch], dimension: int
) -> Tensor:
    """Leading eigenvectors of ``X^T X`` of a norm's output; (hidden size, kept)."""
    device = next(model.parameters()).device
    moments = Moments(norm.hidden_size, device=device)
    mask = torch.ones(0)

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        moments.update(output[mask])

    handle = norm.register_forward_hook(hook)
    try:
        with evaluating(model):
            for batch in batches:
                mask = token_mask(batch).to(device)
                model.base_model(**model_inputs(model.base_model, batch, device))
        gram = moments.gram
    except NonFiniteError as error:
        raise NonFiniteActivationsError(
            f"The residual stream: {error} Run the model in float32 or bfloat16, or remove the "
            "example."
        ) from error
    finally:
        handle.remove()
    return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :dimension]


def _read_in(basis: Tensor, readers: Sequence[nn.Linear]) -> None:
    """Let layers read a signal that is given in a basis."""
    for reader in readers:
        _set_weight(reader, reader.weight.double() @ basis)


def _write_in(basis: Tensor, writer: nn.Linear) -> None:
    """Let a layer write its output in a basis."""
    _set_weight(writer, basis.T @ writer.weight.double())
    if writer.bias is not None:
        rotated = basis.T @ writer.bias.double()
        writer.bias = nn.Parameter(rotated.to(writer.bias.dtype))


def _set_weight(module: nn.Linear | nn.Embedding, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight.to(module.weight.dtype))
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
