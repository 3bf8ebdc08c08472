"""From a fraction of the time to the sizes that take it: choose, time, correct, choose again."""

from __future__ import annotations

from collections.abc import Callable

#: Relative distance from the fraction asked for at which the search ends.
TOLERANCE = 0.02

#: Choices that are timed, and proposals (most of them repeat a choice) that are made.
MAX_TIMED, MAX_PROPOSALS = 8, 40


def search(
    fraction: float,
    least: float,
    choose: Callable[[float], list[int]],
    measure: Callable[[list[int]], float],
) -> list[int]:
    """The choice whose measured time is nearest to a fraction of the dense model's.

    The budget is a share of the time that blocks can save according to a table; the time of the
    whole model differs from the table's sum. So the share is corrected by interpolation between
    the last measurements above and below (regula falsi in its Illinois form; Dowell & Jarratt
    1971).

    Parameters
    ----------
    fraction : float
        Of the dense model's time.
    least : float
        Measured fraction at share 0; at share 1 it is 1.
    choose : callable
        From a share in [0, 1] to a choice.
    measure : callable
        From a choice to the measured fraction.

    Returns
    -------
    list of int
        Within `TOLERANCE` of the fraction where the sizes and the noise allow it.
    """
    if fraction >= 1:
        return choose(1.0)
    # Shares with the time that they take too little, and too much.
    below, above = (0.0, max(fraction - least, 0.0)), (1.0, 1.0 - fraction)
    timed: dict[tuple[int, ...], float] = {}
    short = None
    for _ in range(MAX_PROPOSALS):
        share = below[0] + (above[0] - below[0]) * below[1] / (below[1] + above[1])
        choice = tuple(choose(share))
        if choice not in timed:
            if len(timed) == MAX_TIMED:
                break
            timed[choice] = measure(list(choice))
        excess = timed[choice] - fraction
        if abs(excess) <= TOLERANCE * fraction:
            break
        # An end that stays twice running counts half, so that it does not stay for ever.
        if excess < 0:
            above = (above[0], above[1] / 2) if short is True else above
            below, short = (share, -excess), True
        else:
            below = (below[0], below[1] / 2) if short is False else below
            above, short = (share, excess), False
        if above[0] - below[0] < 1e-6:
            break
    nearest = min(timed, key=lambda one: abs(timed[one] - fraction))
    return list(nearest)
