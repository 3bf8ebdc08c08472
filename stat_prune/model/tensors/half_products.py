"""Products of bfloat16 and float16 matrices, on CPUs that have no instructions for them.

There torch multiplies in scalar steps, five to seven times slower than in float32. Products in
float32 that are rounded once give the same values, up to the order of the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

#: Rows from which a product takes longer than the copies of its factors.
_LEAST_ROWS = 32

#: Entries of a weight that are copied at a time, to bound the memory.
_PIECE = 2**22

#: What multiplies matrices in the layers of transformers, and which argument holds the rows.
_ROWS_OF: dict[Callable[..., Any], int] = {
    F.linear: 0,
    F.scaled_dot_product_attention: 0,
    torch.addmm: 1,  # GPT-2
    torch.baddbmm: 1,
    Tensor.baddbmm: 1,  # BLOOM
    torch.bmm: 0,
    Tensor.bmm: 0,
    torch.matmul: 0,
    Tensor.matmul: 0,
    Tensor.__matmul__: 0,
}


def fast_half_products(dtypes: Iterable[torch.dtype]) -> AbstractContextManager[Any]:
    """Inside, products of these dtypes on a CPU take the quicker way; a GPU's are as they are."""
    slow = frozenset(dtype for dtype in dtypes if not is_native(dtype))
    return _Float32Products(slow) if slow else nullcontext()


def copied_bytes(dtype: torch.dtype, largest_weight: int) -> int:
    """Most that the quicker way takes of memory, where it is taken."""
    return 0 if is_native(dtype) else 4 * min(largest_weight, _PIECE)


@cache
def is_native(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of the dtype at full speed."""
    supported = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    if dtype not in supported:
        return True
    return bool(getattr(torch.ops.mkldnn, supported[dtype])())


class _Float32Products(TorchFunctionMode):
    def __init__(self, slow: frozenset[torch.dtype]) -> None:
        super().__init__()
        self._slow = slow

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        place = _ROWS_OF.get(func, len(args))
        rows = args[place] if place < len(args) else None
        if (
            not isinstance(rows, Tensor)
            or rows.dtype not in self._slow
            or rows.device.type != "cpu"
            or rows.numel() < _LEAST_ROWS * rows.shape[-1]
        ):
            return func(*args, **kwargs)
        if func is F.linear:
            return _linear(*args, **kwargs)
        wide = {name: _widened(value) for name, value in kwargs.items()}
        return func(*map(_widened, args), **wide).to(rows.dtype)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Some rows of the weight at a time; those of a language model's head are many."""
    wide = rows.float()
    pieces = weight.split(max(_PIECE // weight.shape[1], 1))
    biases = [None] * len(pieces) if bias is None else bias.split(len(pieces[0]))
    products = [
        F.linear(wide, piece.float(), None if part is None else part.float()).to(rows.dtype)
        for piece, part in zip(pieces, biases, strict=True)
    ]
    return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
