"""The table of families and promises in the documentation is whole, and tells failures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from families import FAMILIES
from matrix import BEGIN, DOCS, END, PROMISES, Outcomes, table_of_opening

CONTRACT = Path(__file__).parent


def test_the_table_has_a_row_for_every_family_and_no_broken_promise():
    table = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert rows[0] == list(PROMISES)
    assert [row[0] for row in rows[2:]] == [family.label for family in FAMILIES]
    assert {cell for row in rows[2:] for cell in row[1:]} == {"✓", "–"}


def test_the_documentation_says_how_results_of_each_family_open():
    assert table_of_opening() in DOCS.read_text(encoding="utf-8")


def test_the_command_that_writes_the_table_can_start_its_tests():
    """Their plugin for type checks refuses to start once what it checks is imported."""
    check = "import sys, matrix; sys.exit('stat_prune.linalg' in sys.modules)"
    paths = [str(CONTRACT.parents[1]), str(CONTRACT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", check], check=True, env=environment)


def test_every_promise_names_tests_that_exist():
    source = "".join(path.read_text(encoding="utf-8") for path in CONTRACT.glob("test_*.py"))
    for tests in PROMISES.values():
        assert all(f"def {name}(" in source for name in tests)


def test_one_failure_breaks_a_promise_and_a_skip_keeps_none():
    outcomes = Outcomes(["GPT2", "GPTNeoX-parallel", "Falcon"])
    name = PROMISES["low rank"][0]

    def report(arguments: str, outcome: str, when: str = "call") -> None:
        node = f"tests/contract/test_identity.py::{name}[{arguments}]"
        outcomes.pytest_runtest_logreport(
            SimpleNamespace(nodeid=node, outcome=outcome, when=when)  # type: ignore[arg-type]
        )

    report("GPT2-fractions", "passed", "setup")
    assert outcomes.cell("GPT2", "low rank") == "–"
    report("GPT2-fractions", "passed")
    assert outcomes.cell("GPT2", "low rank") == "✓"
    report("GPT2-0.1", "failed")
    assert outcomes.cell("GPT2", "low rank") == "✗"
    report("fractions-GPTNeoX-parallel", "skipped", "setup")
    assert outcomes.cell("GPTNeoX-parallel", "low rank") == "–"
    report("Falcon-x", "failed", "setup")
    assert outcomes.cell("Falcon", "low rank") == "✗"
