"""Linear maps wherever they are: a linear layer, a transposed one, a slice of an expert tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stat_prune.model.blocks import Block


@dataclass(frozen=True)
class Projection:
    """One linear map of a model, ``y = x W^T + b``.

    Attributes
    ----------
    module : nn.Module
        What computes it: the layer, or the module of all experts.
    weight : Tensor of shape (out_features, in_features)
        A view: what is written into it is written into the model.
    bias : Tensor of shape (out_features,), or None
    held_in : tuple of Tensor
        The parameters of `module` that weight and bias are in.
    expert : int or None
        Which expert of `module` it belongs to.
    """

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    held_in: tuple[Tensor, ...]
    expert: int | None = None


def head_projections(base_model: nn.Module, block: Block) -> list[Projection]:
    """The linear maps to queries, keys and values, which one layer may have all of.

    Parameters
    ----------
    base_model : nn.Module
    block : Block
        Of heads whose dimensions can leave.
    """
    layers = [projection(base_model, one.path) for one in block.producers]
    if len(layers) > 1:
        return layers
    (fused,) = layers
    counts = [rows.numel() for rows in block.part_rows(block.producers[0])]
    weights, biases = fused.weight.split(counts), [None] * len(counts)
    if fused.bias is not None:
        biases = list(fused.bias.split(counts))
    pairs = zip(weights, biases, strict=True)
    return [replace(fused, weight=weight, bias=bias) for weight, bias in pairs]


def projection(base_model: nn.Module, path: str) -> Projection:
    """The linear map at a path below the base model.

    Parameters
    ----------
    base_model : nn.Module
    path : str
        Of a linear layer, or of a parameter of shape (experts, out_features, in_features) and the
        number of an expert: ``"layers.0.mlp.experts.down_proj.3"``.

    Raises
    ------
    AttributeError
        If there is nothing.
    """
    parent, _, last = path.rpartition(".")
    if last.isdecimal():
        tensor_path, _, _ = path.rpartition(".")
        module_path, _, name = tensor_path.rpartition(".")
        module = base_model.get_submodule(module_path)
        weights = getattr(module, name)
        if isinstance(weights, nn.Parameter):
            return Projection(module, weights[int(last)], None, (weights,), int(last))
    layer = base_model.get_submodule(path)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    held_in = (weight,) if bias is None else (weight, bias)
    return Projection(layer, weight.T if isinstance(layer, Conv1D) else weight, bias, held_in)
