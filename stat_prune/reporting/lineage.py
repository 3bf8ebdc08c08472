"""What was done to the result of a run before it was pruned again: finishes and trimmings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stat_prune.reporting.finish_report import Finish
from stat_prune.reporting.trimming_report import TrimmingReport

#: As in `PruningReport.trimmings`: each with the number of finishes before it.
Trimmings = Sequence[tuple[int, TrimmingReport]]


def steps_of(finishes: Sequence[Finish], trimmings: Trimmings) -> list[str]:
    """A line for each, in order."""
    steps = []
    for number in range(len(finishes) + 1):
        steps += [f"trimming: {one.in_one_line()}" for at, one in trimmings if at == number]
        steps += [f"finish: {one}" for one in finishes[number : number + 1]]
    return steps


def parameters_left(trimmings: Trimmings, after_run: int) -> int:
    """Of a result that had so many parameters after the run itself."""
    return trimmings[-1][1].parameters if trimmings else after_run


def steps_after(run: dict[str, Any]) -> list[str]:
    """`steps_of` a run of `PruningReport.earlier`."""
    return steps_of([Finish(**one) for one in run.get("finishes", [])], trimmings_of(run))


def parameters_after(run: dict[str, Any]) -> int:
    """`parameters_left` of a run of `PruningReport.earlier`."""
    return parameters_left(trimmings_of(run), int(run["after"]["parameters"]))


def trimmings_of(values: dict[str, Any]) -> list[tuple[int, TrimmingReport]]:
    """Those of a report, or of a run of `PruningReport.earlier`, as plain values."""
    return [(at, TrimmingReport(**one)) for at, one in values.get("trimmings", [])]
