"""The table of real models: each pruned in its own process, saved, loaded, measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import stat_prune
import table
from harness import records
from harness.apart import apart
from harness.cost_tables import cost_tables, spent_figure
from harness.inputs import drawn
from harness.tables import markdown
from harness.ways import METHOD_NAMES, WAYS, method_of
from stat_prune.errors import DataError, SettingsError, StatPruneError
from stat_prune.evaluation import read_glue
from tasks import TASKS, named

LINE = "sst2=tiny-sst2"
COMMON = ("--method", "stat-fast", "--budget", "0.6", "--seed", 3, "--examples", 20)


def called(output: Path, *arguments: object):
    app = typer.Typer()
    app.command()(table.main)
    given = ["--task", LINE, *COMMON, "--shape", "2x16", "--rounds", 2, "--output", output]
    return CliRunner().invoke(app, [str(one) for one in (*given, *arguments)])


def record(path: Path) -> dict:
    content = json.loads(path.read_text())
    return records.read(path, content["conditions"])


@pytest.mark.slow
def test_a_cell_is_measured_on_what_was_saved_and_timed_when_that_is_asked_for(at_hand, tmp_path):
    first = called(tmp_path, "--no-speed")

    assert first.exit_code == 0, first.output
    path, folder = tmp_path / f"{LINE}-stat-fast-3.json", tmp_path / "models"
    found = record(path)
    assert found["settings"]["effort"] == "fast" and found["settings"]["seed"] == 3
    measures = found["measures"]["0.6"]
    (saved,) = folder.iterdir()
    pruned = stat_prune.load(saved)
    assert measures["parameters"] == sum(one.numel() for one in pruned.parameters())
    assert measures["bytes"] == (saved / "model.safetensors").stat().st_size
    assert measures["bytes"] < found["measures"]["dense"]["bytes"]
    assert measures["peak_bytes"] >= measures["bytes_before"] > 0
    # It reads the calibration set once to measure, and part of it again to probe.
    assert measures["forwards"] > 0.5
    assert "speed_up" not in measures

    dense = AutoModelForSequenceClassification.from_pretrained(at_hand / "models" / "tiny-sst2")
    texts = read_glue("sst2", at_hand / "data" / "glue").texts
    tokenizer = AutoTokenizer.from_pretrained(at_hand / "models" / "tiny-sst2")
    total = torch.zeros(())
    with torch.no_grad():
        for batch in drawn(dense, tokenizer, texts, 20).batches:
            before, after = (one.eval()(**batch).logits.log_softmax(-1) for one in (dense, pruned))
            total += (before.exp() * (before - after)).sum()
    assert measures["divergence"] == pytest.approx(float(total) / 20, rel=1e-4)

    again = called(tmp_path)

    assert again.exit_code == 0, again.output
    timed = record(path)
    assert timed["measures"]["0.6"].pop("speed_up") > 0
    assert timed == found  # and nothing was pruned a second time
    assert list(folder.iterdir()) == []
    assert "| 0.6 | stat-fast |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table-spent.png").stat().st_size > 1000


def test_a_line_names_a_task_at_hand_or_a_kind_and_a_model(at_hand):
    assert named("stories") == ("stories", TASKS["stories"])
    name, make = named("sst2=tiny-sst2")
    assert name == "sst2=tiny-sst2"
    assert make().conditions["model"] == "tiny-sst2"
    assert named("encoder=owner/name")[0] == "encoder=name"
    assert len(named("squad=tiny-squad")[1]().unseen()) == 30
    assert named("wikitext2=tiny-llama")[1]().conditions["context length"] == 32
    for line in ("story", "sst2=", "language=tiny-llama", "reactions=other"):
        with pytest.raises(SettingsError, match=f"'{line}' is no task"):
            named(line)


def test_a_line_that_names_nothing_is_refused_before_any_work(tmp_path):
    app = typer.Typer()
    app.command()(table.main)
    result = CliRunner().invoke(app, ["--task", "story", "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_ways_are_methods_with_arguments_and_names_of_their_own():
    assert method_of("stat-lora") == ("stat", {"finish": "lora"})
    assert method_of("kprune") == ("kprune", {})
    assert len(set(METHOD_NAMES)) == len(METHOD_NAMES)
    assert set(table.WAYS) <= set(METHOD_NAMES) and set(WAYS) <= set(table.WAYS)


def refuse(name: str) -> None:
    raise DataError(f"no {name}")


@pytest.mark.slow
def test_another_process_answers_raises_or_is_said_to_have_ended():
    assert apart(os.getpid) != os.getpid()
    with pytest.raises(DataError, match="no text"):
        apart(refuse, "text")
    with pytest.raises(StatPruneError, match=r"ran _exit ended by itself \(exit code 7\)"):
        apart(os._exit, 7)


def made(method: str, seed: int, score: float, forwards: float, **measures: float) -> dict:
    return {
        "task": "sst2",
        "method": method,
        "seed": seed,
        "metric": "accuracy",
        "dense": 0.9,
        "scores": {"0.5": score},
        "sizes": {"0.5": {"kept_macs": 0.5, "kept_parameters": 0.5}},
        "settings": {},
        "versions": {},
        "measures": {
            "dense": {"parameters": 2e6, "bytes": 2**23},
            "0.5": {"forwards": forwards, "computing_seconds": 60.0, "bytes": 2**22, **measures},
        },
    }


def test_tables_hold_means_over_seeds_and_go_by_what_was_spent():
    rows = [
        made("slow", 0, 0.80, 30.0, speed_up=1.5),
        made("slow", 1, 0.90, 50.0, speed_up=2.5),
        made("quick", 0, 0.70, 2.0),
    ]

    text = cost_tables(rows)

    assert "| 1 | dense | 0.9000 | 1 | 2.000 | 8.0 |  |  |" in text
    assert "| 0.5 | slow | 0.8500 ± 0.0500 | 0.500 |  | 4.0 | 2.00 | 60 |" in text
    assert "| 0.5 | quick | 0.7000 | 0.500 |  | 4.0 |  | 60 |" in text  # not timed
    spent = text[text.index("by what is spent") :]
    assert "| 0.5 | slow | 40.0 | 1.00 | 0.8500 ± 0.0500 |" in spent
    assert spent.index("quick") < spent.index("slow")

    (panel,) = spent_figure(rows).axes
    assert panel.lines[0].get_xydata() == pytest.approx(torch.tensor([[2, 0.7], [40, 0.85]]))


def test_stages_are_told_as_multiples_of_a_forward_too():
    rows = [made("stat", seed, 0.8, 2.0) for seed in range(2)]
    for row, seconds in zip(rows, (0.002, 0.004), strict=True):
        row["measures"]["dense"]["seconds of a forward"] = 0.004
        row["measures"]["0.5"] |= {"seconds of collect": seconds, "seconds of cut": 12.34}
    text = cost_tables(rows)
    left, stages = text.split("**sst2**, stage by stage")
    assert "seconds of" not in left
    assert stages.startswith("; a forward over the calibration set takes 0.00400 s\n")
    assert "| 0.5 | stat | collect | 0.00300 | 0.750 |" in stages
    assert "| 0.5 | stat | cut | 12.3 | 3085 |" in stages
    for row in rows:
        del row["measures"]["dense"]["seconds of a forward"]
    assert "| 0.5 | stat | cut | 12.3 |  |" in cost_tables(rows)


def test_what_was_measured_under_other_conditions_is_not_averaged():
    cpu, gpu = {"device": "cpu", "dtype": "float32"}, {"device": "cuda", "dtype": "float32"}
    rows = [
        made("stat", 0, 0.80, 30.0) | {"conditions": cpu | {"seed": 0}},
        made("stat", 1, 0.90, 50.0) | {"conditions": cpu | {"seed": 1}},
        made("stat", 0, 0.70, 2.0) | {"conditions": gpu},
    ]

    text = cost_tables(rows)

    assert "dtype" not in text  # of which there is one
    on_cpu, on_gpu = text.index("**sst2 (device: cpu)**"), text.index("**sst2 (device: cuda)**")
    assert on_cpu < text.index("| 0.5 | stat | 0.8500 ± 0.0500 |") < on_gpu
    assert "| 0.5 | stat | 2.0 | 1.00 | 0.7000 |" in text[on_gpu:]
    assert "device" not in cost_tables(rows[:2])

    first, second = spent_figure(rows).axes
    assert (first.get_title(), second.get_title()) == (
        "sst2 (device: cpu)",
        "sst2 (device: cuda)",
    )
    scores = markdown(rows)
    assert "**sst2 (device: cuda)**, accuracy, dense 0.9000, seeds 0" in scores
    assert "| stat | 0.8500 ± 0.0500 |" in scores and "| stat | 0.7000 |" in scores


def test_records_without_what_was_spent_have_neither_its_table_nor_its_figure():
    row = made("half", 0, 0.8, 1.0)
    for name in ("forwards", "computing_seconds"):
        del row["measures"]["0.5"][name]
    text = cost_tables([row])
    assert "what is left" in text and "by what is spent" not in text and "CPU s" not in text
    assert spent_figure([row]) is None
