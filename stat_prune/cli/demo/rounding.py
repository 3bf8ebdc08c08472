"""Weights in int8, as the demo compares with: rounded, and computed with in float32."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

LARGEST = 127


def in_int8(model: PreTrainedModel) -> tuple[PreTrainedModel, int]:
    """Round linear layers and embeddings to int8, with a scale for each row.

    Parameters
    ----------
    model : PreTrainedModel
        Stays as it is.

    Returns
    -------
    rounded : PreTrainedModel
        A copy, whose matrices of weights hold multiples of their rows' scales, in their own dtype.
    num_bytes : int
        What a file of it takes: a byte a weight, a float32 scale a row; biases and norms as they
        are.
    """
    rounded = copy.deepcopy(model)
    num_bytes = 0
    for weight in rounded.parameters():
        if weight.dim() != 2:
            num_bytes += weight.numel() * weight.element_size()
            continue
        weight.data = _rounded_rows(weight.detach())
        num_bytes += weight.numel() + 4 * len(weight)
    return rounded, num_bytes


def _rounded_rows(weight: torch.Tensor) -> torch.Tensor:
    largest = weight.float().abs().amax(dim=1)
    scales = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)  # rows of zeros
    middles = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    rounded = torch.fake_quantize_per_channel_affine(
        weight.float(), scales, middles, axis=0, quant_min=-LARGEST, quant_max=LARGEST
    )
    return rounded.to(weight.dtype)
