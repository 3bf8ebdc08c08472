"""Processes under torchrun share out the examples and end with the model of a single one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forks import ROOT, Fork
from tiny_models import tiny_bert
from transformers import AutoTokenizer

import stat_prune
from stat_prune.checkpoints.replacing import REPORT_FILE
from stat_prune.machine import distributed
from stat_prune.reporting.report import PruningReport

pytestmark = pytest.mark.slow
Start = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, word_tokenizer) -> Path:
    """A folder with a model, its tokenizer and texts of many lengths."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_bert().save_pretrained(folder / "model")
    word_tokenizer.save_pretrained(folder / "model")
    words = "the cat sat on a mat and then it ran under very tree".split()
    texts = [" ".join(words[i % 7 : i % 7 + 3 + i % 5]) for i in range(90)]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    return folder


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """By torchrun itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def fork(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """With the variables that torchrun sets, and without the seconds that it takes to start."""
    return Fork(arguments, processes=processes).ended()


def prune(inputs: Path, output: Path, start: Start, processes: int, *options: str) -> Path:
    done = start(
        processes,
        *("-m", "stat_prune", "prune", str(inputs / "model"), "-d", str(inputs / "texts.txt")),
        *("--macs", "0.6", "--batch-size", "8", "-o", str(output), *options),
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.parametrize(
    ("start", "processes", "options"),
    [(fork, 2, {}), (fork, 3, {"passes": 1}), (fork, 2, {"batch_size": 128, "passes": 1})],
)
def test_several_processes_make_the_model_of_one(inputs, tmp_path, start, processes, options):
    """With one batch for two processes, one of them has no share.

    After a second pass in what it does: a weight that hardly matters is ill-determined there.
    """
    arguments = [
        part
        for name, value in options.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    shared = prune(inputs, tmp_path / "several", start, processes, *arguments)
    alone = stat_prune.prune(
        stat_prune.load(inputs / "model"),
        str(inputs / "texts.txt"),
        tokenizer=AutoTokenizer.from_pretrained(inputs / "model"),
        target=stat_prune.MACs(0.6),
        progress=False,
        **({"batch_size": 8} | options),
    )
    record = json.loads((shared / "config.json").read_text())["stat_prune"]
    assert record["linear"] == alone.model.config.stat_prune["linear"]
    report = json.loads((shared / REPORT_FILE).read_text())
    assert report["settings"]["processes"] == processes
    printed = " ".join(str(PruningReport.from_dict(report)).split())
    assert f"tokens a second by {processes} processes" in printed
    assert "processes" not in alone.report.calibration_text()
    search, expected = PruningReport.from_dict(report).search, alone.report.search
    assert search.taken == expected.taken
    assert bool(search.rounds) == bool(expected.rounds) == (options.get("passes") == 1)
    for one, other in zip(search.rounds, expected.rounds, strict=True):
        assert (one.evaluations, one.accepted) == (other.evaluations, other.accepted)
    found = stat_prune.load(shared)
    pairs = {name: (found.state_dict()[name], w) for name, w in alone.model.state_dict().items()}
    if options.get("passes") != 1:
        ids = torch.arange(12).reshape(1, -1)
        with torch.no_grad():
            states = (one.eval()(ids).last_hidden_state for one in (found, alone.model))
            pairs = {"output": tuple(states)}
    for name, (one, other) in pairs.items():
        error = (one - other).norm() / other.norm().clamp_min(1e-30)
        assert float(error) <= 1e-5, name


SCRIPT = """
import os, sys
import torch
import stat_prune
from stat_prune.machine import distributed
from stat_prune.pipeline import loaded_model, stages
sys.path.insert(0, sys.argv[1])
from tiny_models import tiny_bert

mine = int(os.environ["RANK"]) == 1

def rows():
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 40, (9,), generator=generator)} for _ in range(64)]

def prune(model=None, data=None, **options):
    return stat_prune.prune(
        model or tiny_bert(), data or rows(), target=stat_prune.MACs(0.5), progress=False, **options
    )
"""

FAILING = """
def spoiled(value):
    model = tiny_bert()
    if mine:
        model.encoder.layer[0].intermediate.dense.weight.data.fill_(value)
    return model

with distributed.launched():
    for value in (float("nan"), 1e38):
        try:
            prune(spoiled(value))
        except stat_prune.errors.StatPruneError as error:
            print(f"{value} in {distributed.rank()}: {type(error).__name__}: {error}")
    print(f"other data in {distributed.rank()}:", end=" ", flush=True)
    prune(data=rows()[1:] if mine else None)
"""


def test_what_fails_in_one_process_ends_all_with_its_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + FAILING)
    done = fork(2, str(script), str(ROOT / "tests"))
    assert done.returncode != 0
    for message in (
        "nan in 1: NonFiniteWeightsError: 1 weights of BertModel are not finite",
        "nan in 0: DistributedError: Process 1 failed: 1 weights of BertModel are not finite",
        "1e+38 in 1: NonFiniteActivationsError: encoder.layer.0.neurons",
        "1e+38 in 0: DistributedError: Process 1 failed: encoder.layer.0.neurons",
    ):
        assert message in done.stdout
    message = "DistributedError: The calibration set differs between process 0 and"
    assert done.stderr.count(f"errors.{message}") == 2


DYING = """
if mine:
    stages.sensitivities = lambda *_a, **_k: os._exit(3)
with distributed.launched():
    prune(work_dir=sys.argv[2])
"""

RESUMING = """
def saved(folder):
    result = prune(work_dir=folder)
    if distributed.rank() == 0:
        result.save(folder + "-pruned")

collect_moments, loaded_model.collect_moments = loaded_model.collect_moments, None
with distributed.launched():
    saved(sys.argv[2])
    loaded_model.collect_moments = collect_moments
    saved(sys.argv[3])
"""


def test_a_process_that_dies_ends_the_others_and_what_was_finished_is_not_done_again(tmp_path):
    script, folders = tmp_path / "script.py", [str(tmp_path / name) for name in ("one", "other")]
    tests = str(ROOT / "tests")
    script.write_text(SCRIPT + DYING)
    died = launch(2, str(script), tests, folders[0])
    assert died.returncode != 0
    assert "exitcode  : 3" in died.stderr
    script.write_text(SCRIPT + RESUMING)
    done = fork(2, str(script), tests, *folders)
    assert done.returncode == 0, done.stderr
    resumed, whole = (
        Path(f"{folder}-pruned", "model.safetensors").read_bytes() for folder in folders
    )
    assert resumed == whole
    assert not Path(folders[0]).exists()


def test_one_process_needs_no_group():
    assert not torch.distributed.is_initialized()
    assert distributed.num_processes() == 1
