"""What only a GPU can show: the script that runs it all, and its parts, tried on a CPU."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from tiny_models import tiny_bert
from typer.testing import CliRunner

import agreement
import speed
from harness import records
from harness.shapes import SHAPES, random_weights

SCRIPT = Path(agreement.__file__).with_name("gpu.sh")

#: In place of Python: notes what it is called with, and leaves a table; fails where it is told to.
STAND_IN = """#!/bin/sh
echo "$@" >>"{log}"
[ "$1" = - ] && exit 0
while [ $# -gt 0 ]; do
  case $1 in
    *{fails}*) exit 3 ;;
    --output) mkdir -p "$2" && echo "table of $2" >"$2/one.md" ;;
  esac
  shift
done
"""


def run(folder: Path, *arguments: str, fails: str = "nothing") -> tuple[int, str, list[list[str]]]:
    """Exit code, what is printed, and the calls of Python."""
    stand_in = folder / "python"
    stand_in.write_text(STAND_IN.format(log=folder / "log", fails=fails))
    stand_in.chmod(0o755)
    given = ["--python", str(stand_in), "--output", str(folder / "out"), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "STAT_PRUNE_DATA"}
    done = subprocess.run(
        ["bash", str(SCRIPT), *given], capture_output=True, text=True, env=environment
    )
    log = folder / "log"
    calls = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return done.returncode, done.stdout + done.stderr, calls


@pytest.mark.parametrize("arguments", [(), ("--device", "cpu", "--tiny")], ids=["whole", "tiny"])
def test_every_step_is_run_with_options_that_its_script_has(arguments, tmp_path):
    code, printed, calls = run(tmp_path, *arguments)

    assert code == 0, printed
    helps = {}
    for name, main in (("agreement", agreement.main), ("speed", speed.main)):
        app = typer.Typer()
        app.command()(main)
        helps[name] = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    steps = [call for call in calls if call[0].startswith("benchmarks/")]
    for call in steps:
        text = helps[Path(call[0]).stem]
        for option in call[1:]:
            if option.startswith("--"):
                assert option.replace("--no-", "--") in text, option
        assert call[call.index("--device") + 1] == ("cpu" if arguments else "cuda")
    kinds = [call for call in steps if "--weights" in call]
    assert {call[call.index("--weights") + 1] for call in kinds} <= set(SHAPES)
    assert ["-m", "pytest"] == next(call for call in calls if call[0] == "-m")[:2]
    tables = (tmp_path / "out" / "gpu.md").read_text()
    assert tables.count("table of") == len(steps) == (4 if arguments else 5)


def test_a_step_that_fails_stops_no_other_and_shows_in_the_exit_code(tmp_path):
    code, printed, calls = run(tmp_path, fails="compiled")
    assert code == 1
    assert "== compiled: exit code 3" in printed
    assert any("llama-7b" in call for call in calls)
    assert "speed-eager" in (tmp_path / "out" / "gpu.md").read_text()


def test_what_it_does_not_know_is_refused(tmp_path):
    code, printed, calls = run(tmp_path, "--gpu", "0")
    assert (code, calls) == (2, []) and "unknown option --gpu" in printed
    code, printed, calls = run(tmp_path, "--device")
    assert (code, calls) == (2, []) and "--device needs a value" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_before_any_work(tmp_path):
    done = subprocess.run(
        ["bash", str(SCRIPT), "--python", sys.executable, "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "--device cpu --tiny" in done.stderr and not list((tmp_path / "out").iterdir())


def test_one_device_agrees_with_itself(tmp_path):
    app = typer.Typer()
    app.command()(agreement.main)
    arguments = ["--task", "tiny", "--device", "cpu", "--output", str(tmp_path)]

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "tiny-agreement-0.json").read_text())
    found = records.read(tmp_path / "tiny-agreement-0.json", content["conditions"])
    details = found["details"]["0.6"]
    assert found["scores"]["0.6"] == 1.0
    assert details[agreement.WEIGHTS] == details[agreement.OUTPUTS] == 0.0
    assert details[agreement.BESIDE] > 0
    assert f"**tiny**, {agreement.OUTPUTS}" in (tmp_path / "agreement.md").read_text()


def test_what_two_devices_differ_in_is_measured():
    first = {"heads": [0, 1], "neurons": [0, 1, 2, 3]}
    assert agreement.units_in_common(first, {"heads": [0, 1], "neurons": [0, 1, 2, 4]}) == 5 / 7
    ours = tiny_bert()
    theirs = copy.deepcopy(ours)
    weight = theirs.pooler.dense.weight
    with torch.no_grad():
        weight[0, 0] += 0.001 * weight.abs().max()
    assert agreement.largest_difference(ours, theirs) == pytest.approx(1000, rel=0.01)
    assert agreement.largest_difference(ours, tiny_bert(intermediate_size=32)) is None


def test_shapes_are_those_of_published_models():
    with torch.device("meta"):
        sizes = {
            name: sum(
                one.numel()
                for one in random_weights(
                    name, layers=None, device="meta", dtype="bfloat16", seed=0
                ).parameters()
            )
            for name in ("bert-base", "vit-base", "llama-1b", "llama-7b")
        }
    assert sizes["bert-base"] == 109_482_240
    assert sizes["llama-1b"] == 1_235_814_400
    assert sizes["llama-7b"] == 6_738_415_616
    assert sizes["vit-base"] == pytest.approx(86.4e6, rel=0.01)  # with a pooler


@pytest.mark.slow
def test_pruning_is_timed_by_stage_beside_a_forward(tmp_path):
    app = typer.Typer()
    app.command()(speed.main)
    arguments = ["--weights", "tiny-llama", "--dtype", "bfloat16", "--samples", 40, "--length", 16]
    arguments += ["--repeats", 1, "--budget", 0.6, "--no-forwards", "--output", tmp_path]

    result = CliRunner().invoke(app, [str(one) for one in arguments])

    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.glob("*.json")] == ["pruning.json"]
    found = json.loads((tmp_path / "pruning.json").read_text())
    assert found["settings"]["dtype"] == "torch.bfloat16"
    assert found["task"] == "tiny-llama, random weights: prune beside a forward"
    measures = found["measures"]
    stages = {name for name in measures["0.6"] if name.startswith("seconds of ")}
    assert {"seconds of collect", "seconds of decompose"} <= stages
    whole = sum(measures["0.6"][name] for name in stages)
    ratio = found["scores"]["0.6"]
    assert measures["0.6"]["forwards"] == ratio
    # Stages are parts of what is divided by a forward's time.
    assert whole <= ratio * measures["dense"]["seconds of a forward"] * 1.001
    forward = measures["dense"]["seconds of a forward"]
    table = (tmp_path / "speed.md").read_text().partition("stage by stage")[2]
    told = re.findall(r"^\| 0.6 \| stat \| (.+) \| ([0-9.]+) \| ([0-9.]+) \|$", table, re.MULTILINE)
    assert {f"seconds of {stage}" for stage, _, _ in told} == stages
    for stage, seconds, forwards in told:
        assert float(seconds) == pytest.approx(measures["0.6"][f"seconds of {stage}"], rel=0.01)
        assert float(forwards) == pytest.approx(
            measures["0.6"][f"seconds of {stage}"] / forward, rel=0.01
        )


def test_images_are_made_for_models_that_read_them():
    setup = speed.Setup(
        model=None,
        weights="vit-base",
        layers=1,
        device="cpu",
        dtype="float32",
        budgets=(0.5,),
        round_to=1,
        samples=4,
        length=16,
        repeats=1,
        rounds=1,
        seed=0,
    )
    family = speed.Family(setup)
    assert family.calibration["pixel_values"].shape == (4, 3, 224, 224)
    (result,) = family.prune([0.5])
    assert 0.4 < result.report.after.block_macs / result.report.before.block_macs <= 0.5
