"""Progress in a log file: lines that stand for themselves, and none that is drawn over."""

from __future__ import annotations

import re

import pytest
from tiny_models import tiny_bert

import stat_prune
from stat_prune import MACs
from stat_prune.machine import progress
from stat_prune.machine.progress import progress_bar

TEXTS = ["the cat sat on the mat", "a dog ran under the house", "the bird flew over a tree"] * 8


def test_pruning_says_a_line_a_stage_where_stderr_is_a_file(word_tokenizer, capfd):
    stat_prune.prune(tiny_bert(), TEXTS, tokenizer=word_tokenizer, target=MACs(0.6), effort="fast")
    shown = capfd.readouterr().err
    stages = re.findall(r"^\[\d+ s\] (.*)$", shown, re.M)
    assert stages[0] == "collect" and stages[-1] == "cut"
    assert len(stages) == len(set(stages))
    assert "\r" not in shown


def test_a_long_stage_says_how_far_it_has_come(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    bar = progress_bar(shown=True)
    bar.set_description("train")
    bar.total = 8
    bar.set_postfix({"loss": "0.5"}, refresh=False)
    bar.update(3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines] == ["train", "train, step 3 of 8, loss=0.5"]


@pytest.mark.parametrize("shown", [True, False])
def test_what_is_gone_through_stays_whole(shown, capsys):
    assert list(progress_bar(range(5), shown=shown, desc="read")) == list(range(5))
    assert ("read" in capsys.readouterr().err) == shown


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress_bar(range(3), shown=True, desc="read")) == [0, 1, 2]
    assert "read: 100%" in capsys.readouterr().err
