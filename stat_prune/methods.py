"""The methods: which channels, which correction, which budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stat_prune.errors import SettingsError
from stat_prune.selection import CRITERIA


@dataclass(frozen=True)
class Method:
    """A retraining-free method, as a choice of its three parts.

    Attributes
    ----------
    criterion : str
        A key of `stat_prune.selection.CRITERIA`: which units stay.
    corrected : bool
        Whether the least-squares correction is folded into the consumer.
    absorb_mean : bool
        Whether the decomposition is of centred activations and the mean goes into the bias.
    allocation : {"probed", "unweighted", "even"}
        How the budget is spread over blocks: by the measured effect of each on the output, by
        the blocks' own relative errors, or the same fraction everywhere.
    """

    criterion: str = "interpolative"
    corrected: bool = True
    absorb_mean: bool = True
    allocation: Literal["probed", "unweighted", "even"] = "probed"

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise SettingsError(
                f"`criterion` must be one of {sorted(CRITERIA)}, got {self.criterion!r}."
            )
        if self.allocation not in ("probed", "unweighted", "even"):
            raise SettingsError(
                f"`allocation` must be 'probed', 'unweighted' or 'even', got {self.allocation!r}."
            )


#: Pipelines of their own; see `stat_prune.peers`.
PEERS = ("stat-paper", "flap")

METHODS: dict[str, Method] = {
    "stat": Method(),
    "id-unweighted": Method(allocation="unweighted"),
    "id-even": Method(allocation="even"),
    "id-uncorrected": Method(corrected=False, absorb_mean=False, allocation="even"),
    "magnitude": Method("magnitude", corrected=False, absorb_mean=False, allocation="even"),
    "random": Method("random", corrected=False, absorb_mean=False, allocation="even"),
    # ZipLM, with two stand-ins for its search of the sizes: see `stat_prune.selection.obs`.
    "obs": Method("obs", absorb_mean=False, allocation="unweighted"),
    "obs-probed": Method("obs", absorb_mean=False),
    "wanda-sp": Method("wanda-sp", corrected=False, absorb_mean=False, allocation="even"),
}


def method_named(method: str | Method) -> Method:
    """The `Method` of a name; a `Method` is returned as it is.

    Raises
    ------
    SettingsError
        If the name is unknown; lists those that are known.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise SettingsError(
            f"Unknown method {method!r}. Known: {', '.join([*METHODS, *PEERS])}, or a "
            "stat_prune.Method(...)."
        )
    return METHODS[method]
