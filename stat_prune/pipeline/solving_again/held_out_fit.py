"""Least squares on some sequences, with a ridge that others choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stat_prune.linalg import CrossMoments
from stat_prune.linalg.solving.least_squares import solve_normal


class Fitted(NamedTuple):
    """The D and s of least ``||X D + s - E||``, and the ridge that was best.

    Attributes
    ----------
    ridge : float or None
        None where no change is best.
    change : Tensor of shape (k, d), float64
    shift : Tensor of shape (d,), float64, or None
        Of a fit that is centred.
    """

    ridge: float | None
    change: Tensor
    shift: Tensor | None


class HeldOutFit:
    """Moments of features X and of what they are to say of E, of both kinds of sequences.

    Products are in float32: a ridge is far above what they cannot tell.

    Parameters
    ----------
    num_features, num_targets : int
    centred : bool
        Whether there is a bias that takes the means.
    """

    def __init__(self, num_features: int, num_targets: int, *, centred: bool) -> None:
        self._solved_on, self._held_out = (
            CrossMoments(num_features, num_targets, precision="float32") for _ in range(2)
        )
        self._centred, self._judged = centred, False

    def update(self, features: Tensor, targets: Tensor, *, judges: bool) -> None:
        """Add rows of sequences to solve on, or to choose with."""
        self._judged |= judges
        (self._held_out if judges else self._solved_on).update(features, targets)

    def best(self, ridges: Sequence[float]) -> Fitted:
        """The ridge, relative to each feature's squared norm, that leaves least on held-out rows.

        The squared error is that without a change, and ``tr(D^T (X^T X D - 2 X^T E))``. Where
        nothing is held out there is one ridge.
        """
        normal, cross, _ = self._solved_on.normal_equations(centered=self._centred)
        if not cross.any():  # before the first block that is cut
            return self._fitted(None, cross)
        if not self._judged:
            (ridge,) = ridges
            return self._fitted(ridge, solve_normal(normal, cross, ridge))
        held_normal, held_cross, _ = self._held_out.normal_equations(centered=self._centred)
        best, least, change = None, 0.0, torch.zeros_like(cross)
        for ridge in ridges:
            solution = solve_normal(normal.clone(), cross, ridge)
            error = float((solution * (held_normal @ solution - 2 * held_cross)).sum())
            if error < least:
                best, least, change = ridge, error, solution
        return self._fitted(best, change)

    def _fitted(self, ridge: float | None, change: Tensor) -> Fitted:
        if not self._centred:
            return Fitted(ridge, change, None)
        mean_features, mean_targets = self._solved_on.means
        return Fitted(ridge, change, mean_targets - change.T @ mean_features)
