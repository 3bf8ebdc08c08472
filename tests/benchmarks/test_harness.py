from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import typer
from forks import ROOT, Fork
from stalling import main, task

from harness import records
from harness.cells import Grid, run
from harness.options import DEFAULT_METHODS, known_methods, settings_of
from harness.tables import markdown
from stat_prune.errors import DataError

SCRIPT = Path(__file__).with_name("stalling.py")
OLD_RECORD = {  # as benchmarks/retention.py once wrote them
    "task": "sst2",
    "method": "stat",
    "seed": 0,
    "metric": "accuracy",
    "dense": 0.9,
    "scores": {"0.5": 0.8},
    "settings": {"seed": 0},
    "versions": {"torch": "2"},
}


def started(output: Path, log: Path, stall_at: int) -> Fork:
    paths = [ROOT, ROOT / "benchmarks", ROOT / "tests"]
    return Fork(
        [str(SCRIPT), str(output), str(log), str(stall_at)],
        environment={"PYTHONPATH": os.pathsep.join(map(str, paths))},
    )


def ended(output: Path, log: Path) -> str:
    """The table of a run that nothing stops, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(output, log, 0)
    return printed.getvalue()


def wait_for_lines(log: Path, count: int, process: Fork) -> None:
    deadline = time.monotonic() + 240
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert process.is_running(), process.ended().stderr
        assert time.monotonic() < deadline, "the benchmark does not get there"
        time.sleep(0.05)


def shown(record: dict) -> dict:
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[str, Path]:
    """The table, and the folder of the records."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return ended(folder / "out", folder / "log"), folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_benchmark_goes_on_and_repeats_no_finished_cell(how, tmp_path, uninterrupted):
    log, output, stall_at = tmp_path / "log", tmp_path / "out", 8
    process = started(output, log, stall_at)
    wait_for_lines(log, stall_at, process)
    finished = {path.name: path.read_bytes() for path in output.glob("*.json")}
    os.kill(process.ids[0], how)
    done = process.ended()
    if how == signal.SIGINT:
        assert done.returncode == 130
        assert "goes on there" in done.stderr
        assert "stat" in (output / "stalling.md").read_text()
    # Dense, two budgets of four cells of which the last is being scored.
    assert len(finished) == 1 + 3 and stall_at == 1 + 3 * 2 + 1

    table = ended(output, log)

    assert {name: (output / name).read_bytes() for name in finished} == finished
    # Every cell once, but the budget that was being scored; slicegpt refuses an encoder.
    assert len(log.read_text().splitlines()) == 2 * (1 + 4 * 2) + 1
    expected, whole = uninterrupted
    assert table == expected
    for path in whole.glob("*.json"):
        there, here = (json.loads((folder / path.name).read_text()) for folder in (whole, output))
        assert shown(there) == shown(here)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("records") / "out"
    grid = Grid(("random", "slicegpt"), (0, 1), (0.5,))
    run("small", {"one": lambda: task(output.parent / "log", 0)}, grid, output)
    return output


def test_records_say_all_that_repeats_them(measured):
    record = records.read(measured / "one-random-1.json", {"length": 16})

    assert (record["task"], record["method"], record["seed"]) == ("one", "random", 1)
    assert record["settings"]["seed"] == 1
    assert record["settings"]["num_calibration_samples"] == 24
    assert record["versions"]["torch"] == torch.__version__
    assert record["details"]["0.5"]["mean"] == record["scores"]["0.5"]
    assert record["sizes"]["0.5"]["kept_macs"] <= 0.5
    assert record["details"]["0.5"]["size"] < record["details"]["dense"]["size"]


def test_tables_have_a_row_a_method_and_a_table_a_score(measured):
    table = (measured / "small.md").read_text()
    values = [
        records.read(measured / f"one-random-{seed}.json", {"length": 16})["scores"]["0.5"]
        for seed in (0, 1)
    ]

    spread = abs(values[0] - values[1]) / 2  # the standard error of two
    assert f"| random | {sum(values) / 2:.4f} ± {spread:.4f} |" in table
    assert "**one**, mean, dense" in table and "**one**, size, dense" in table
    assert "length: 16" in table
    assert "slicegpt does not apply: SliceGPT rotates the head" in table
    assert (measured / "small.png").stat().st_size > 1000


def test_only_missing_budgets_are_measured(measured, tmp_path):
    log = measured.parent / "log"
    before = len(log.read_text().splitlines())

    run(
        "small",
        {"one": lambda: task(log, 0)},
        Grid(("random",), (0,), (0.5, 0.7)),
        measured,
    )

    assert len(log.read_text().splitlines()) == before + 1
    record = records.read(measured / "one-random-0.json", {"length": 16})
    assert set(record["scores"]) == {"0.5", "0.7"}


def test_records_of_other_conditions_are_refused(measured):
    with pytest.raises(DataError, match=r"other conditions \(length: 16, now 32\)"):
        records.read(measured / "one-random-0.json", {"length": 32})


def test_a_way_to_search_is_an_argument_of_prune_and_a_condition_of_the_record(tmp_path, capsys):
    settings = settings_of("fast", "searched")
    grid = Grid(("obs", "stat"), (0,), (0.5,))
    tasks = {"one": lambda: task(tmp_path / "log", 0)}
    run("small", tasks, grid, tmp_path / "out", settings=settings)

    conditions = {"length": 16, "effort": "fast", "budget": "searched"}
    for method in grid.methods:
        record = records.read(tmp_path / "out" / f"one-{method}-0.json", conditions)
        assert {name: record["settings"][name] for name in settings} == settings
    with pytest.raises(typer.Exit):
        run("small", tasks, grid, tmp_path / "out", settings=settings_of("normal", None))
    assert "other conditions (effort: 'fast', now 'normal'" in capsys.readouterr().err
    assert settings_of(None, None) == {}


def test_records_from_before_there_were_conditions_are_read(tmp_path):
    path = tmp_path / "sst2-stat-0.json"
    path.write_text(json.dumps(OLD_RECORD))

    assert records.read(path, {"model": "any"}) == OLD_RECORD
    assert "| stat | 0.8000 |" in markdown([OLD_RECORD])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"seed": "0"}, "seed"),
        ({"scores": {"0.5": "high"}}, "scores"),
        ({"surprise": 1}, "surprise"),
        ({"sizes": {"0.5": {}}}, "kept_macs"),
        ({"details": {"half": {}}}, "half"),
    ],
)
def test_what_the_schema_does_not_admit_is_neither_written_nor_read(change, where, tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(DataError, match=where):
        records.write(path, OLD_RECORD | change)
    assert not path.exists()
    path.write_text(json.dumps(OLD_RECORD | change))
    with pytest.raises(DataError, match="Move it away"):
        records.read(path, {})


def test_damaged_records_are_refused(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(OLD_RECORD)[:40])
    with pytest.raises(DataError, match="no record"):
        records.read(path, {})


def test_what_is_not_finite_becomes_null_and_an_empty_cell(tmp_path):
    path = tmp_path / "record.json"
    records.write(path, OLD_RECORD | {"scores": {"0.5": math.nan, "0.4": math.inf, "0.3": 0.5}})

    record = records.read(path, {})

    assert record["scores"] == {"0.5": None, "0.4": None, "0.3": 0.5}
    assert "| stat |  |  | 0.5000 |" in markdown([record])


def test_a_failed_write_leaves_the_record_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    records.write(path, OLD_RECORD)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.write(path, OLD_RECORD | {"seed": 1})

    assert records.read(path, {}) == OLD_RECORD


def test_unknown_methods_are_refused_before_any_work():
    with pytest.raises(typer.BadParameter, match=r"\['stats'\] are none of stat, "):
        known_methods(DEFAULT_METHODS)(["stat", "stats"])
