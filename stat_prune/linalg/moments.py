"""Streaming first and second moments of the rows of a matrix."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor

from .checks import check_count, check_matrix, check_same_device
from .streams import RowStream

# Rows that are converted and multiplied at once: enough for the matrix product to run at full
# speed, few enough for the buffer to be small beside an m x m matrix of any size that matters.
_BLOCK_ROWS = 1024
# Width of the column panels of the symmetric product; each is multiplied with itself and with
# what lies to its right, so that the lower triangle is never computed.
_PANEL = 256


Centred = TypeVar("Centred", bound="_CentredStream")


class _CentredStream(RowStream):
    """Mean and centred second moments by the pairwise update of Chan, Golub and LeVeque (1983).

    Rows are collected into blocks of fixed size, whatever the sizes of the batches they arrive
    in. So results do not depend, to the last bit, on how the stream was cut into batches, and
    small batches cost no more than large ones.
    """

    _pending = 0
    _buffer: Tensor | None = None
    _mean: Tensor

    def _allocate(self, device: torch.device) -> None:
        self._mean = torch.zeros(self.num_channels, dtype=torch.float64, device=device)

    def _accumulate(self, rows: Float64[Tensor, "n m"]) -> None:
        """Add the second moments of rows that are already centred."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """Number of rows seen."""
        return self._seen + self._pending

    def _add(self, rows: Tensor) -> None:
        while len(rows):
            if self._buffer is None:
                # One row more than a block: it takes the correction for the shift of the mean.
                self._buffer = self._mean.new_empty(_BLOCK_ROWS + 1, self.num_channels)
            fits = min(len(rows), _BLOCK_ROWS - self._pending)
            self._buffer[self._pending : self._pending + fits].copy_(rows[:fits])
            self._pending += fits
            if self._pending == _BLOCK_ROWS:
                self._flush(self._buffer)
            rows = rows[fits:]

    def _flush(self, buffer: Float64[Tensor, "rows m"]) -> None:
        """Move the pending rows from the buffer into the statistics."""
        new, total = self._pending, self._seen + self._pending
        block = buffer[: new + 1]
        # A product with ones: several times faster than a mean along the rows.
        mean = block[:new].T @ block.new_full((new,), 1 / new)
        block[:new] -= mean
        # The rank-one term of the pairwise update rides along as one more row of the product.
        torch.sub(mean, self._mean, out=block[new])
        self._mean += block[new] * (new / total)
        block[new] *= (self._seen * new / total) ** 0.5
        self._accumulate(block)
        self._seen, self._pending = total, 0

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


class Moments(_CentredStream):
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
    device : torch.device or str, optional
        Where the statistics live; batches are moved there. Default: the device of the first batch.

    References
    ----------
    .. [1] Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, The
       American Statistician 37(3), eq. 2.1.
    """

    _tensors = ("mean", "scatter")
    _scatter: Tensor

    def _allocate(self, device: torch.device) -> None:
        super()._allocate(device)
        m = self.num_channels
        self._scatter = torch.zeros(m, m, dtype=torch.float64, device=device)

    def _accumulate(self, rows: Float64[Tensor, "n m"]) -> None:
        add_upper_gram(self._scatter, rows)

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

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: `num_channels`, `count`, `mean` (m,) and `scatter` (m, m)."""
        mirror_upper(self.scatter)
        return super().state_dict()


class CrossMoments(_CentredStream):
    """Moments of features X (n x k) and targets Y (n x d) that least squares of Y on X needs.

    With the kept columns as features and the others (or what the next layer makes of them) as
    targets, a second pass over the data needs k² + kd doubles where `Moments` takes m².

    Memory: k² + kd + k + 2d doubles, and a buffer of 1,025 (k + d) that is released whenever a
    statistic is read.

    Parameters
    ----------
    num_features, num_targets : int
        k and d.
    device : torch.device or str, optional
        Where the statistics live. Default: the device of the first batch.
    """

    _settings = ("num_features", "num_targets")
    _tensors = ("mean", "features", "cross", "targets")
    _features: Tensor
    _cross: Tensor
    _targets: Tensor

    def __init__(
        self, num_features: int, num_targets: int, *, device: torch.device | str | None = None
    ) -> None:
        self.num_features = check_count(num_features, "num_features")
        self.num_targets = check_count(num_targets, "num_targets")
        super().__init__(num_features + num_targets, device=device)

    def _allocate(self, device: torch.device) -> None:
        super()._allocate(device)
        k, d = self.num_features, self.num_targets
        self._features = self._mean.new_zeros(k, k)
        self._cross = self._mean.new_zeros(k, d)
        self._targets = self._mean.new_zeros(d)

    def _accumulate(self, rows: Float64[Tensor, "n m"]) -> None:
        features, targets = rows[:, : self.num_features], rows[:, self.num_features :]
        add_upper_gram(self._features, features)
        self._cross.addmm_(features.T, targets)
        self._targets += targets.square().sum(dim=0)

    def update(  # type: ignore[override]
        self, features: Tensor, targets: Tensor
    ) -> CrossMoments:
        """Add rows of features and, beside them, rows of targets.

        Parameters
        ----------
        features : Tensor of shape (n, k)
        targets : Tensor of shape (n, d)
            Any floating-point dtype, on the same device.

        Returns
        -------
        CrossMoments
            Itself.

        Raises
        ------
        TypeError, ValueError
            If shapes, devices or dtypes are wrong or an entry is not finite.
        """
        check_matrix(features, "features")
        check_matrix(targets, "targets")
        check_same_device(targets, "targets", features.device)
        if (features.shape[1], targets.shape[1]) != (self.num_features, self.num_targets):
            raise ValueError(
                f"`features` and `targets` must have {self.num_features} and {self.num_targets} "
                f"columns, got shapes {tuple(features.shape)} and {tuple(targets.shape)}."
            )
        if len(features) != len(targets):
            raise ValueError(
                "`features` and `targets` must have as many rows as each other, got "
                f"{len(features)} and {len(targets)}."
            )
        return super().update(torch.cat([features, targets], dim=1))

    @property
    def means(self) -> tuple[Float64[Tensor, " k"], Float64[Tensor, " d"]]:
        """Means of the features (k,) and of the targets (d,), float64."""
        self._settle()
        return self._mean[: self.num_features], self._mean[self.num_features :]

    def normal_equations(
        self, *, centered: bool = False
    ) -> tuple[Float64[Tensor, "k k"], Float64[Tensor, "k d"], Float64[Tensor, " d"]]:
        """XᵀX of shape (k, k), XᵀY of shape (k, d) and the squared norms of the columns of Y.

        Parameters
        ----------
        centered : bool
            Of the deviations from the mean rather than of the rows themselves.
        """
        self._settle()
        mirror_upper(self._features)
        if centered:
            return self._features.clone(), self._cross.clone(), self._targets.clone()
        x, y = self.means
        return (
            torch.addr(self._features, x, x, alpha=self.count),
            torch.addr(self._cross, x, y, alpha=self.count),
            self._targets + self.count * y.square(),
        )


def add_upper_gram(out: Float64[Tensor, "m m"], rows: Float64[Tensor, "n m"]) -> None:
    """Add rowsᵀ rows to the upper block triangle of `out`, in place.

    On its own SciPy's dsyrk is a little faster on a CPU; between the layers of a torch model, whose
    threads and BLAS's then get in each other's way, it is much slower.
    """
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
