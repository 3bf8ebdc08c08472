"""Streaming first and second moments of the rows of a matrix."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from .checks import check_finite, check_matrix

# Rows that are converted and multiplied at once: enough for the matrix product to run at full
# speed, few enough for the buffer to be small beside an m x m matrix of any size that matters.
_BLOCK_ROWS = 1024
# Width of the column panels of the symmetric product; each is multiplied with itself and with
# what lies to its right, so that the lower triangle is never computed.
_PANEL = 256


class Moments:
    """Row count, mean and centred scatter of a stream of rows, accumulated in float64.

    Rows are collected into blocks of fixed size, whatever the sizes of the batches they arrive
    in, so that results do not depend on how the stream was cut into batches, to the last bit.
    Blocks are combined by the pairwise update of Chan, Golub and LeVeque (1983), which does not
    cancel when the mean is large against the deviation.

    Memory: m² + m doubles, and a buffer of 1,025 m doubles that is released whenever a
    statistic is read. It does not depend on the number of rows.

    Parameters
    ----------
    num_channels : int
        Number of columns m.
    device : torch.device or str, optional
        Where statistics live; batches are moved there. Default: the device of the first batch.

    References
    ----------
    Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, The American
    Statistician 37(3), eq. 2.1.
    """

    def __init__(self, num_channels: int, *, device: torch.device | str | None = None) -> None:
        if isinstance(num_channels, bool) or not isinstance(num_channels, int):
            raise TypeError(f"`num_channels` must be an int, got {num_channels!r}.")
        if num_channels < 1:
            raise ValueError(f"`num_channels` must be positive, got {num_channels}.")
        self.num_channels = num_channels
        self._count = 0
        self._pending = 0
        self._symmetric = True
        self._buffer: Tensor | None = None
        self._device: torch.device | None = None
        if device is not None:
            self._allocate(torch.device(device))

    def _allocate(self, device: torch.device) -> None:
        m = self.num_channels
        self._mean = torch.zeros(m, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(m, m, dtype=torch.float64, device=device)
        self._device = self._scatter.device

    def _require(self) -> None:
        if self._device is None:
            self._allocate(torch.device("cpu"))
        self._flush()
        self._buffer = None

    @property
    def count(self) -> int:
        """Number of rows seen."""
        return self._count + self._pending

    @property
    def device(self) -> torch.device | None:
        """Where the statistics live; None until a batch or the constructor has said."""
        return self._device

    @property
    def mean(self) -> Float64[Tensor, " m"]:
        """Mean of the rows, of shape (m,), float64; zeros if there were none."""
        self._require()
        return self._mean

    @property
    def scatter(self) -> Float64[Tensor, "m m"]:
        """Sum of (a - mean)(a - mean)ᵀ, of shape (m, m), float64: the state itself, no copy."""
        self._require()
        if not self._symmetric:
            mirror_upper(self._scatter)
            self._symmetric = True
        return self._scatter

    @property
    def gram(self) -> Float64[Tensor, "m m"]:
        """Sum of a aᵀ, of shape (m, m), float64: a new matrix."""
        return torch.addr(self.scatter, self.mean, self.mean, alpha=self.count)

    def update(self, batch: Tensor) -> Moments:
        """Add the rows of `batch`.

        Parameters
        ----------
        batch : Tensor of shape (n, m)
            Any floating-point dtype; n may be 0. It is not modified.

        Returns
        -------
        Moments
            Itself.

        Raises
        ------
        ValueError
            If the shape is wrong or an entry is not finite; nothing of the batch is added then.
        TypeError
            If `batch` is not a floating-point tensor.
        """
        check_matrix(batch, "batch")
        if batch.shape[1] != self.num_channels:
            raise ValueError(
                f"`batch` must have {self.num_channels} columns, got shape {tuple(batch.shape)}."
            )
        if self._device is None:
            self._allocate(batch.device)
        if not bool(torch.isfinite(batch.sum(dtype=torch.float64))):
            check_finite(batch, "batch")
        for rows in batch.detach().split(_BLOCK_ROWS):
            self._append(rows)
        return self

    def _append(self, rows: Tensor) -> None:
        if self._buffer is None:
            # One row more than a block: it takes the correction for the shift of the mean.
            self._buffer = torch.empty(
                _BLOCK_ROWS + 1, self.num_channels, dtype=torch.float64, device=self._device
            )
        fits = min(len(rows), _BLOCK_ROWS - self._pending)
        self._buffer[self._pending : self._pending + fits].copy_(rows[:fits])
        self._pending += fits
        if self._pending == _BLOCK_ROWS:
            self._flush()
        if fits < len(rows):
            self._append(rows[fits:])

    def _flush(self) -> None:
        """Move the pending rows from the buffer into the statistics."""
        if not self._pending or self._buffer is None:
            return
        new, total = self._pending, self._count + self._pending
        block = self._buffer[: new + 1]
        mean = block[:new].mean(dim=0)
        block[:new] -= mean
        # The rank-one term of the pairwise update rides along as one more row of the product.
        torch.sub(mean, self._mean, out=block[new])
        self._mean += block[new] * (new / total)
        block[new] *= (self._count * new / total) ** 0.5
        add_upper_gram(self._scatter, block)
        self._symmetric = False
        self._count, self._pending = total, 0

    def merge(self, other: Moments) -> Moments:
        """Add the rows that `other` has seen; `other` is unchanged. Returns itself."""
        if not isinstance(other, Moments):
            raise TypeError(f"`other` must be a Moments, got {type(other).__name__}.")
        if other.num_channels != self.num_channels:
            raise ValueError(
                f"cannot merge moments of {other.num_channels} channels into moments "
                f"of {self.num_channels}."
            )
        if other.count == 0:
            return self
        theirs, their_mean = other.scatter, other.mean
        if self._device is None:
            self._allocate(theirs.device)
        mine = self.scatter
        total = self.count + other.count
        delta = their_mean.to(mine.device) - self._mean
        mine += theirs.to(mine.device)
        mine.addr_(delta, delta, alpha=self._count * other.count / total)
        self._mean += delta * (other.count / total)
        self._count = total
        return self

    def __add__(self, other: Moments) -> Moments:
        return Moments.from_state_dict(self.state_dict()).merge(other)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: `count` (int), `mean` and `scatter` (float64 tensors)."""
        return {"count": self.count, "mean": self.mean.clone(), "scatter": self.scatter.clone()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Moments:
        """Rebuild from `state_dict()`. Tensors are taken over, not copied."""
        missing = {"count", "mean", "scatter"} - state.keys()
        if missing:
            raise ValueError(f"`state` lacks {sorted(missing)}; pass what state_dict() returned.")
        moments = cls(len(state["mean"]))
        moments._mean, moments._scatter = state["mean"], state["scatter"]
        moments._count, moments._device = int(state["count"]), state["scatter"].device
        return moments


def add_upper_gram(out: Float64[Tensor, "m m"], rows: Float64[Tensor, "n m"]) -> None:
    """Add rowsᵀ rows to the upper block triangle of `out`, in place."""
    for start in range(0, len(out), _PANEL):
        stop = start + _PANEL
        out[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])


def mirror_upper(out: Float64[Tensor, "m m"]) -> None:
    """Copy the upper triangle of `out` onto its lower one, in place, panel by panel."""
    for start in range(0, len(out), _PANEL):
        stop = start + _PANEL
        diagonal = out[start:stop, start:stop].triu()
        out[start:stop, start:stop] = diagonal + diagonal.triu(1).T
        out[stop:, start:stop] = out[start:stop, stop:].T
