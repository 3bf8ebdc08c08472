"""Streaming moments of features and targets, for least squares of one on the other."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stat_prune.linalg.checks import (
    check_choice,
    check_count,
    check_finite,
    check_matrix,
    check_same_device,
)
from stat_prune.linalg.streaming.centred import CentredStream, add_upper_gram, mirror_upper
from stat_prune.linalg.streaming.moments import PRECISIONS


class CrossMoments(CentredStream):
    """Moments of features X (n x k) and targets Y (n x d) that least squares of Y on X needs.

    With the kept columns as features and the others (or what the next layer makes of them) as
    targets, a second pass over the data needs k² + kd doubles where `Moments` takes m².

    Memory: k² + kd + k + 2d doubles, and a buffer of 1,025 (k + d) that is released whenever a
    statistic is read.

    Parameters
    ----------
    num_features, num_targets : int
        k, which may be 0, and d.
    precision : {"float64", "float32"}
        Of the products inside a block of rows, as for `Moments`.
    device : torch.device or str, optional
        Where the statistics live. Default: the device of the first batch.

    Raises
    ------
    ValueError
        If `precision` is another word.

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import CrossMoments, least_squares_from_moments
    >>> features = torch.tensor([[1.0], [2.0], [3.0]])
    >>> moments = CrossMoments(1, 1).update(features, 2 * features)
    >>> gram, cross, _ = moments.normal_equations()
    >>> least_squares_from_moments(gram, cross).round(decimals=6)
    tensor([[2.]], dtype=torch.float64)
    """

    _settings = ("num_features", "num_targets", "precision")
    _tensors = ("mean", "features", "cross", "targets")
    _features: Tensor
    _cross: Tensor
    _targets: Tensor

    def __init__(
        self,
        num_features: int,
        num_targets: int,
        *,
        precision: str = "float64",
        device: torch.device | str | None = None,
    ) -> None:
        check_choice(precision, "precision", PRECISIONS)
        self.precision = precision
        self._product_dtype = getattr(torch, precision)
        self.num_features = check_count(num_features, "num_features", minimum=0)
        self.num_targets = check_count(num_targets, "num_targets")
        super().__init__(num_features + num_targets, device=device)

    def _allocate(self, device: torch.device) -> None:
        super()._allocate(device)
        k, d = self.num_features, self.num_targets
        self._features = self._mean.new_zeros(k, k)
        self._cross = self._mean.new_zeros(k, d)
        self._targets = self._mean.new_zeros(d)

    def _accumulate(self, rows: Float[Tensor, "n m"]) -> None:
        features, targets = rows[:, : self.num_features], rows[:, self.num_features :]
        add_upper_gram(self._features, features)
        self._cross += features.T @ targets
        self._targets += targets.square().sum(dim=0)

    def _squares(self) -> Float64[Tensor, " m"]:
        return torch.cat([self._features.diagonal(), self._targets])

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
        for name, rows in (("features", features), ("targets", targets)):
            check_finite(rows, name)
        if self._device is None:
            self._place(features.device)
        self._add(features.detach(), targets.detach())
        return self

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
