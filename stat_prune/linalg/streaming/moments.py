"""Streaming first and second moments of the rows of a matrix."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stat_prune.linalg.checks import check_choice
from stat_prune.linalg.streaming.centred import (
    BLOCK_ROWS,
    CentredStream,
    add_upper_gram,
    mirror_upper,
)

#: Dtypes in which blocks of rows can be multiplied.
PRECISIONS = ("float64", "float32")


class Moments(CentredStream):
    """Row count, mean and centred scatter of a stream of rows, accumulated in float64.

    Memory: m² + m doubles, and a buffer of 1,025 m doubles that is released whenever a
    statistic is read; none of it grows with the number of rows. The sums are those of the
    pairwise update of [1]_, which does not cancel when the mean is large against the deviation.
    How the stream was cut into batches changes nothing, to the last bit; how it was cut into
    shards that are merged changes the rounding.

    Parameters
    ----------
    num_channels : int
        Number of columns m.
    precision : {"float64", "float32"}
        Of the products inside a block of 1,024 rows; their sums over blocks are float64 either way.
        With "float32", a third to a half of the time on a CPU and far less on GPUs that are slow in
        float64, each entry of the scatter has an error of about 1e-7 times the norms of its two
        columns: what is left of a column is not told from zero below some 3e-4 of its norm, and
        columns below 1e-16 or above 1e16 are lost.
    device : torch.device or str, optional
        Where the statistics live; batches are moved there. Default: the device of the first batch.

    Raises
    ------
    ValueError
        If `precision` is another word.
    NonFiniteError
        Of `update`, or of a statistic when it is read: if an entry is not finite or sums overflow.

    References
    ----------
    .. [1] Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, The
       American Statistician 37(3), eq. 2.1.

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import Moments
    >>> moments = Moments(2)
    >>> for batch in (torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 2.0]])):
    ...     _ = moments.update(batch)
    >>> moments.count, moments.mean
    (2, tensor([2., 1.], dtype=torch.float64))
    >>> moments.gram
    tensor([[10.,  6.],
            [ 6.,  4.]], dtype=torch.float64)
    """

    _settings = ("num_channels", "precision")
    _tensors = ("mean", "scatter")
    _scatter: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        precision: str = "float64",
        device: torch.device | str | None = None,
    ) -> None:
        check_choice(precision, "precision", PRECISIONS)
        self.precision = precision
        self._product_dtype = getattr(torch, precision)
        super().__init__(num_channels, device=device)

    @staticmethod
    def num_bytes(num_channels: int) -> int:
        """Bytes that moments of so many columns take, with the buffer of rows."""
        return 8 * num_channels * (num_channels + BLOCK_ROWS + 1)

    def _allocate(self, device: torch.device) -> None:
        super()._allocate(device)
        m = self.num_channels
        self._scatter = torch.zeros(m, m, dtype=torch.float64, device=device)

    def _accumulate(self, rows: Float[Tensor, "n m"]) -> None:
        add_upper_gram(self._scatter, rows)

    def _squares(self) -> Float64[Tensor, " m"]:
        return self._scatter.diagonal()

    @property
    def mean(self) -> Float64[Tensor, " m"]:
        """Mean of the rows, of shape (m,), float64; zeros if there were none."""
        self._settle()
        return self._mean

    @property
    def scatter(self) -> Float64[Tensor, "m m"]:
        """Sum of (a - mean)(a - mean)ᵀ, of shape (m, m), float64: the state itself, no copy."""
        self._settle()
        mirror_upper(self._scatter)
        return self._scatter

    @property
    def gram(self) -> Float64[Tensor, "m m"]:
        """Sum of a aᵀ, of shape (m, m), float64: a new matrix."""
        return torch.addr(self.scatter, self.mean, self.mean, alpha=self.count)

    def pop_gram(self) -> Float64[Tensor, "m m"]:
        """`gram` in the memory of the scatter, which is gone: the last that is asked of moments."""
        gram = self.scatter.addr_(self.mean, self.mean, alpha=self.count)
        del self._scatter
        return gram

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: `num_channels`, `count`, `mean` (m,) and `scatter` (m, m)."""
        mirror_upper(self.scatter)
        return super().state_dict()
