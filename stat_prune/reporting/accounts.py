"""The account that lies beside a model, and whether it is of that model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedModel

from stat_prune.errors import LoadError
from stat_prune.model.dispatched import own_parameters
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.result import read_account

#: A report, and the plan beside it.
Account = tuple[PruningReport, dict[str, list[int]]]


def account_beside(model: PreTrainedModel) -> Account | None:
    """Report and plan in the folder that a model came from, be they of this model or not."""
    if model.name_or_path:
        with suppress(LoadError):
            return read_account(Path(model.name_or_path))
    return None


def own_account(model: PreTrainedModel) -> Account | None:
    """The same; None where they tell of another model.

    As where the result was pruned again and never saved.
    """
    found = account_beside(model)
    told = found is not None and found[0].parameters_now == num_parameters(model)
    return found if told else None


def num_parameters(model: PreTrainedModel) -> int:
    """Of all, each once."""
    return sum(parameter.numel() for parameter in own_parameters(model))
