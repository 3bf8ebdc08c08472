"""Families by promises, from the outcomes of the contract tests, into docs/architectures.md.

python -m tests.contract.matrix [arguments of pytest, such as -n 2]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stat_prune.errors import UnsupportedArchitectureError
from stat_prune.families import stacks_of

if TYPE_CHECKING:
    from families import Family

FOLDER = Path(__file__).parent
DOCS = FOLDER.parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- contract matrix: begin -->\n", "<!-- contract matrix: end -->"
BEGIN_OPENING, END_OPENING = "<!-- opening: begin -->\n", "<!-- opening: end -->"
BEGIN_UNLISTED, END_UNLISTED = "<!-- unlisted: begin -->\n", "<!-- unlisted: end -->"

#: What a column stands for: the tests that keep the promise.
PROMISES = {
    "keeps all": ["test_keeping_everything_is_the_identity"],
    "low rank": ["test_linearly_dependent_heads_and_neurons_leave_without_loss"],
    "reloads": ["test_every_head_class_loads_to_the_bit_in_both_ways"],
    "alone": ["test_the_folder_loads_to_the_bit_where_stat_prune_cannot_be_imported"],
    "plain": ["test_uniform_results_load_in_plain_transformers_without_any_flag"],
    "MACs": ["test_reported_macs_are_those_that_torch_counts"],
    "generates": ["test_generating_with_the_cache_gives_what_a_full_forward_gives"],
    "dtypes": ["test_models_come_back_in_their_own_dtype"],
    "padding": [
        "test_padding_does_not_change_the_result",
        "test_padding_of_text_beside_signals_does_not_change_the_result",
    ],
    "again": ["test_a_result_can_be_pruned_again_and_saved_again"],
    "removal": [
        "test_a_removed_block_leaves_its_bias_and_nothing_else",
        "test_models_without_some_blocks_load_to_the_bit_in_each_way",
        "test_blocks_that_add_nothing_leave_altogether_and_nothing_is_lost",
    ],
    "second pass": [
        "test_the_stream_comes_closer_to_the_dense_one",
        "test_with_one_block_cut_there_is_nothing_to_make_up_for",
    ],
}


class Outcomes:
    """A plugin of pytest that remembers how each promise went for each family."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = sorted(labels, key=len, reverse=True)
        self.seen: dict[tuple[str, str], set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what counts of a test: its call, or what kept it from being called."""
        if report.when != "call" and report.outcome == "passed":
            return
        name, _, arguments = report.nodeid.rpartition("::")[2].rstrip("]").partition("[")
        label = next((one for one in self.labels if f"-{one}-" in f"-{arguments}-"), None)
        for promise, tests in PROMISES.items():
            if label is not None and name in tests:
                self.seen.setdefault((label, promise), set()).add(report.outcome)

    def cell(self, label: str, promise: str) -> str:
        """The mark of a family and a promise."""
        seen = self.seen.get((label, promise), set())
        return "✗" if "failed" in seen else "✓" if "passed" in seen else "–"


def table(labels: Sequence[str], cells: Mapping[tuple[str, str], str]) -> str:
    """Markdown: a row a family, a column a promise."""
    rows = [["", *PROMISES], ["---", *(":---:" for _ in PROMISES)]]
    rows += [[label, *(cells[label, promise] for promise in PROMISES)] for label in labels]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def opening(family: Family) -> dict[str, str]:
    """How results with fewer heads, or fewer neurons, open, where all layers are of one size."""
    stacks = [stack for stack, _ in stacks_of(family.build())]
    attentions = [one for stack in stacks for one in stack.attentions]
    said = all(one.config_heads and not one.fixed for one in attentions)
    heads = "plain" if said else "remote code"
    if all(one.fixed for one in attentions):
        heads = "stay"
    said = all(one.config_neurons for stack in stacks for one in stack.feed_forwards)
    return {"heads": heads, "neurons": "plain" if said else "remote code"}


def table_of_opening() -> str:
    """Markdown: a row a family."""
    from families import FAMILIES

    rows = ["| | heads | neurons |\n| --- | --- | --- |\n"]
    for family in FAMILIES:
        rows.append(f"| {family.label} | {' | '.join(opening(family).values())} |\n")
    return "".join(rows)


def table_of_unlisted() -> str:
    """Markdown: what is inferred of each family of `unlisted`, and why no more."""
    from unlisted import FURTHER, NEURONS, REFUSED, WHOLE

    families = [*WHOLE, *NEURONS, *FURTHER, *(family for family, _ in REFUSED)]
    rows = ["| | heads | neurons | what is in the way |\n| --- | :---: | :---: | --- |\n"]
    for family in sorted(families, key=lambda one: one.label.lower()):
        rows.append(f"| {family.label} | {' | '.join(inferred(family))} |\n")
    return "".join(rows)


def inferred(family: Family) -> tuple[str, str, str]:
    """Marks for heads and neurons that can leave, and the reason where one cannot."""
    # The tests' type checks are to be there before stat_prune.linalg is imported.
    from stat_prune import infer_architecture

    try:
        found = infer_architecture(family.build())
    except UnsupportedArchitectureError as error:
        why = str(error).partition("could not be inferred: ")[2]
        return "✗", "✗", _in_a_cell(why.partition(". Describe where")[0])
    attentions = [a for stack in (found, *found.other_stacks) for a in stack.attentions]
    reasons = [one.fixed for one in attentions if one.fixed]
    mark = "✗" if len(reasons) == len(attentions) else "partly" if reasons else "✓"
    why = _in_a_cell(reasons[0].partition("of its layers, but ")[2].rstrip(".")) if reasons else ""
    return mark, "✓", why


def _in_a_cell(reason: str) -> str:
    # Figures of a proof are of random weights, and say little.
    return re.sub(r" by \d\S+", "", reason).replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str]) -> int:
    """Run the tests of all promises and write the table; 1 if a promise is broken."""
    sys.path.insert(0, str(FOLDER))
    from families import FAMILIES

    labels = [family.label for family in FAMILIES]
    outcomes = Outcomes(labels)
    names = " or ".join(name for tests in PROMISES.values() for name in tests)
    pytest.main([str(FOLDER), "-q", "-k", names, *arguments], plugins=[outcomes])
    cells = {(one, promise): outcomes.cell(one, promise) for one in labels for promise in PROMISES}
    _write_between(BEGIN, END, table(labels, cells))
    _write_between(BEGIN_OPENING, END_OPENING, table_of_opening())
    _write_between(BEGIN_UNLISTED, END_UNLISTED, table_of_unlisted())
    print(table(labels, cells))
    return int("✗" in cells.values())


def _write_between(begin: str, end: str, text: str) -> None:
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    DOCS.write_text(before + begin + text + end + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
