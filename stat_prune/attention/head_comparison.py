"""Do the heads that were removed attend to other things than those that were kept?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stat_prune.errors import DataError
from stat_prune.measuring.head_statistics import HeadStatistics


@dataclass(frozen=True)
class Comparison:
    """One statistic of the dense model's heads, by what became of them.

    Attributes
    ----------
    statistic : str
        A name of `HeadStatistics`.
    removed, kept : float
        Means.
    effect : float
        Cliff's delta: the probability that a removed head has the larger value, less that a kept
        one has; between -1 and 1.
    low, high : float
        Its bootstrap interval (percentiles) at `confidence_level`. Heads are resampled as if they
        were independent of each other.
    num_removed, num_kept : int
    confidence_level : float
    """

    statistic: str
    removed: float
    kept: float
    effect: float
    low: float
    high: float
    num_removed: int
    num_kept: int
    confidence_level: float


def compare_removed(
    statistics: HeadStatistics,
    plan: Mapping[str, Collection[int]],
    *,
    names: Sequence[str] | None = None,
    confidence_level: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> list[Comparison]:
    """Compare the removed heads of a plan with the kept ones.

    The question is that of VTrans (Dutta, Gupta and Agarwal 2024, arXiv:2406.05276): do the heads
    that leave attend more to special and current tokens, and those that stay to content words?

    Parameters
    ----------
    statistics : HeadStatistics
        Of the dense model.
    plan : mapping of str to collection of int
        Heads kept by block name, as in `PruningResult.plan`; other blocks in it are passed over.
    names : sequence of str, optional
        Statistics to compare. Default: all.
    confidence_level : float
    num_resamples : int
    seed : int
        Of the bootstrap.

    Returns
    -------
    list of Comparison

    Raises
    ------
    DataError
        If the plan is of another model, or fewer than two heads were removed or kept.
    """
    missing = statistics.values.keys() - plan.keys()
    if missing:
        raise DataError(
            f"The plan does not speak of {sorted(missing)[0]}. Pass the plan of a pruning of the "
            "model that the statistics are of."
        )
    kept = np.concatenate([_kept(plan[name], statistics, name) for name in statistics.values])
    if min(kept.sum(), (~kept).sum()) < 2:
        raise DataError(
            f"{(~kept).sum()} heads were removed and {kept.sum()} kept: too few to compare. Take a "
            "plan that removes two or more, and keeps two."
        )
    from scipy.stats import bootstrap  # tens of megabytes that pruning does not need

    comparisons = []
    for name in names or statistics.names:
        values = np.concatenate(statistics.columns(name))
        removed, stayed = values[~kept], values[kept]
        interval = bootstrap(
            (removed, stayed),
            cliffs_delta,
            n_resamples=num_resamples,
            batch=500,
            confidence_level=confidence_level,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        comparisons.append(
            Comparison(
                statistic=name,
                removed=float(removed.mean()),
                kept=float(stayed.mean()),
                effect=float(cliffs_delta(removed, stayed)),
                low=float(interval.low),
                high=float(interval.high),
                num_removed=len(removed),
                num_kept=len(stayed),
                confidence_level=confidence_level,
            )
        )
    return comparisons


def cliffs_delta(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """``P(first > second) - P(first < second)`` over all pairs, along an axis (Cliff 1993)."""
    first, second = np.moveaxis(first, axis, -1), np.moveaxis(second, axis, -1)
    delta: np.ndarray = np.sign(first[..., :, None] - second[..., None, :]).mean((-2, -1))
    return delta


def _kept(heads: Collection[int], statistics: HeadStatistics, name: str) -> np.ndarray:
    mask = np.zeros(len(statistics.values[name]["entropy"]), dtype=bool)
    mask[list(heads)] = True
    return mask
