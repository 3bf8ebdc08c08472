"""The runs that made a model, before one prunes it again."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from stat_prune.checkpoints.checkpoint import stock_class
from stat_prune.reporting.accounts import account_beside, num_parameters
from stat_prune.reporting.lineage import parameters_after
from stat_prune.reporting.recorded_sizes import dense_model


def earlier_runs(model: PreTrainedModel) -> list[dict[str, Any]]:
    """What a report says of the runs before it, the first one first.

    Where a model came from a folder with a report, that tells. A run that left none, or whose
    result was trained and saved by others, is known by the sizes in the config alone.

    Parameters
    ----------
    model : PreTrainedModel
        Not cut yet.

    Returns
    -------
    list of dict
        As `PruningReport.earlier`.
    """
    beside = account_beside(model)
    known = [] if beside is None else beside[0].as_earlier()
    now = num_parameters(model)
    told = known and parameters_after(known[-1]) == now
    if told or not getattr(model.config, "stat_prune", None):
        return known
    before = parameters_after(known[-1]) if known else _dense_parameters(model)
    if before is None:
        return known
    untold = {"model": type(model).__name__, "method": "a run that left no report"}
    return [
        *known,
        {
            "settings": untold | {"target": "the sizes in its config"},
            "before": {"parameters": before},
            "after": {"parameters": now},
        },
    ]


def _dense_parameters(model: PreTrainedModel) -> int | None:
    """Of what a model was pruned from; None of a class that transformers does not know."""
    known = stock_class(model)
    return None if known is None else dense_model(model.config, known).num_parameters()
