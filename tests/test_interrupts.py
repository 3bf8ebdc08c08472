"""Ctrl-C says in one line how to go on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from forks import Fork
from tiny_models import tiny_llama

from stat_prune import cli

GOES_ON = "go on with the same command and --resume."


@pytest.fixture
def command(tmp_path, word_tokenizer) -> list[str]:
    tiny_llama().save_pretrained(tmp_path / "dense")
    word_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\n" * 60)
    data = ["--dataset", str(tmp_path / "texts.txt"), "--macs", "0.6"]
    return ["prune", str(tmp_path / "dense"), *data, "-o", str(tmp_path / "out")]


def interrupted(command: list[str], monkeypatch, capsys) -> str:
    """What a command says when it is stopped at its probes."""

    def stop(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stat_prune.pipeline.stages.sensitivities", stop)
    monkeypatch.setattr("stat_prune.pipeline.on_disk.layer_pass.LayerPass.distances", stop)
    monkeypatch.setattr(sys, "argv", ["stat-prune", *command])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "stat-prune:" in one]
    return line


@pytest.mark.parametrize("option", ["--resume", "--layer-at-a-time"])
def test_where_work_is_kept_it_names_the_folder_and_resume(option, command, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        line = interrupted([*command, option], patch, capsys)
    assert line.startswith("stat-prune: interrupted. ") and line.endswith(GOES_ON)
    assert f"{command[-1]}.working" in line
    monkeypatch.setattr(sys, "argv", ["stat-prune", *command, *{option, "--resume"}])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert Path(command[-1], "model.safetensors").exists() or option == "--layer-at-a-time"


def test_where_nothing_is_kept_it_says_how_to_keep_it(command, monkeypatch, capsys):
    line = interrupted(command, monkeypatch, capsys)
    assert line.endswith("Nothing was saved; begun with --resume, it keeps what is finished.")
    assert not Path(command[-1]).exists()


def test_the_signal_of_the_keyboard_ends_a_process_of_its_own_with_130(command, tmp_path):
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\n" * 20_000)
    more = ["--num-calibration-samples", "20000", "--batch-size", "1", "--layer-at-a-time"]
    process = Fork(["-m", "stat_prune", *command, *more])
    while not Path(f"{command[-1]}.working").exists():
        assert process.is_running(), process.ended().stderr
        time.sleep(0.05)
    os.kill(process.ids[0], signal.SIGINT)
    done = process.ended()
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith(GOES_ON)


def test_the_help_says_what_ctrl_c_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stat-prune", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    said = " ".join(capsys.readouterr().out.split())
    assert "130 stopped with Ctrl-C (one line says whether --resume can go on)" in said
