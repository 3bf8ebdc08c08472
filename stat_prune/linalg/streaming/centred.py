"""Means and sums of products that are centred while their rows stream by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stat_prune.linalg.exceptions import NonFiniteError
from stat_prune.linalg.streaming.streams import RowStream

# Rows that are converted and multiplied at once: enough for the matrix product to run at full
# speed, few enough for the buffer to be small beside an m x m matrix of any size that matters.
BLOCK_ROWS = 1024
# Width of the column panels of the symmetric product; each is multiplied with itself and with
# what lies to its right, so that the lower triangle is never computed.
_PANEL = 256

Centred = TypeVar("Centred", bound="CentredStream")


class CentredStream(RowStream):
    """Mean and centred second moments by the pairwise update of Chan, Golub and LeVeque (1983).

    Rows are collected into blocks of fixed size, whatever the sizes of the batches they arrive
    in. So results do not depend, to the last bit, on how the stream was cut into batches, and
    small batches cost no more than large ones.
    """

    _pending = 0
    _buffer: Tensor | None = None
    _mean: Tensor
    _product_dtype = torch.float64

    def _allocate(self, device: torch.device) -> None:
        self._mean = torch.zeros(self.num_channels, dtype=torch.float64, device=device)

    def _accumulate(self, rows: Float[Tensor, "n m"]) -> None:
        """Add the second moments of rows that are already centred."""
        raise NotImplementedError

    def _squares(self) -> Float64[Tensor, " m"]:
        """Second moments of each column, whose products bound all others."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """Number of rows seen."""
        return self._seen + self._pending

    def _add(self, *parts: Tensor) -> None:
        """Add rows, of which the parts have some columns each, one beside the other."""
        widths, count, added = [part.shape[1] for part in parts], len(parts[0]), 0
        while added < count:
            if self._buffer is None:
                # One row more than a block: it takes the correction for the shift of the mean.
                self._buffer = torch.empty(
                    BLOCK_ROWS + 1,
                    self.num_channels,
                    dtype=self._product_dtype,
                    device=self._mean.device,
                )
            fits = min(count - added, BLOCK_ROWS - self._pending)
            free = self._buffer[self._pending : self._pending + fits]
            for columns, part in zip(free.split(widths, dim=1), parts, strict=True):
                columns.copy_(part[added : added + fits])
            self._pending += fits
            if self._pending == BLOCK_ROWS:
                self._flush(self._buffer)
            added += fits

    def _flush(self, buffer: Float[Tensor, "rows m"]) -> None:
        """Move the pending rows from the buffer into the statistics."""
        new, total = self._pending, self._seen + self._pending
        block = buffer[: new + 1]
        shift = -self._mean
        # A mean in float32 leaves a small one behind, which a second takes.
        for _ in range(1 if block.dtype is torch.float64 else 2):
            # A product with ones: several times faster than a mean along the rows.
            mean = block[:new].T @ block.new_full((new,), 1 / new)
            block[:new] -= mean
            shift += mean
        self._mean += shift * (new / total)
        # The rank-one term of the pairwise update rides along as one more row of the product.
        block[new] = shift * (self._seen * new / total) ** 0.5
        self._accumulate(block)
        self._seen, self._pending = total, 0
        self._check_overflow()

    def _check_overflow(self) -> None:
        squares = self._squares()
        bad = ~(self._mean.isfinite() & squares.isfinite())
        if bool(bad.any()):
            dtype = str(self._product_dtype).removeprefix("torch.")
            raise NonFiniteError(
                f"the sums of {int(bad.sum())} columns overflow, the first at column "
                f"{int(bad.nonzero()[0])}: squares of the entries are beyond {dtype}. Scale the "
                "rows down, or remove those of extreme size."
                + (' Or pass precision="float64".' if dtype == "float32" else "")
            )

    def _settle(self) -> None:
        super()._settle()
        if self._pending and self._buffer is not None:
            self._flush(self._buffer)
        self._buffer = None

    def _combine(self: Centred, other: Centred) -> None:
        if not other._seen:
            return
        total = self._seen + other._seen
        delta = other._mean.to(self._mean.device) - self._mean
        for name in self._tensors:
            if name != "mean":
                getattr(self, f"_{name}").add_(getattr(other, f"_{name}").to(delta.device))
        self._accumulate((delta * (self._seen * other._seen / total) ** 0.5)[None])
        self._mean += delta * (other._seen / total)
        self._check_overflow()


def add_upper_gram(out: Float64[Tensor, "m m"], rows: Float[Tensor, "n m"]) -> None:
    """Add rowsᵀ rows, multiplied in their own dtype, to the upper block triangle of `out`.

    On its own SciPy's dsyrk is a little faster on a CPU; between the layers of a torch model, whose
    threads and BLAS's then get in each other's way, it is much slower.
    """
    with _full_float32():
        for start in range(0, len(out), _PANEL):
            panel, right = rows[:, start : start + _PANEL], rows[:, start:]
            if rows.dtype is out.dtype:
                out[start : start + _PANEL, start:].addmm_(panel.T, right)
            else:
                out[start : start + _PANEL, start:] += panel.T @ right


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 or bfloat16 inside, which the process may have allowed for float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def mirror_upper(out: Float64[Tensor, "m m"]) -> None:
    """Copy the upper triangle of `out` onto its lower one, in place, panel by panel."""
    for start in range(0, len(out), _PANEL):
        stop = start + _PANEL
        diagonal = out[start:stop, start:stop].triu()
        out[start:stop, start:stop] = diagonal + diagonal.triu(1).T
        out[stop:, start:stop] = out[start:stop, stop:].T
