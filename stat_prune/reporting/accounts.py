"""The account that lies beside a model, where it is of that model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedModel

from stat_prune.errors import LoadError
from stat_prune.model.dispatched import own_parameters
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.result import read_account


def account_of(model: PreTrainedModel) -> tuple[PruningReport, dict[str, list[int]]] | None:
    """Report and plan in the folder that a model came from; None where it tells of another one.

    As where the result was pruned again and never saved.
    """
    if not model.name_or_path:
        return None
    with suppress(LoadError):
        report, plan = read_account(Path(model.name_or_path))
        if report.parameters_now == num_parameters(model):
            return report, plan
    return None


def num_parameters(model: PreTrainedModel) -> int:
    """Of all, each once."""
    return sum(parameter.numel() for parameter in own_parameters(model))
