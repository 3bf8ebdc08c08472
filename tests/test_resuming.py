"""`work_dir`: a run that was broken off goes on from what it had measured, to the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from forks import Fork
from tiny_models import tiny_bert

import stat_prune
from stat_prune.errors import SettingsError
from stat_prune.pipeline import loaded_model, stages


def rows():
    generator = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(3, 40, (9,), generator=generator)} for _ in range(64)]


def pruned(**options):
    options = {"target": stat_prune.MACs(0.5), "progress": False} | options
    return stat_prune.prune(options.pop("model", None) or tiny_bert(), rows(), **options)


def same_bits(first, second):
    one, other = first.model.state_dict(), second.model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


#: Stages, and the modules that call them.
WHERE = {
    "collect": loaded_model,
    "decompose": loaded_model,
    "sensitivities": stages,
    "_finished": stages,
}


class Stop(Exception):
    """Instead of a power cut."""


@pytest.mark.parametrize("stage", list(WHERE))
def test_a_run_goes_on_from_what_it_had_measured(stage, tmp_path, monkeypatch):
    expected = pruned()
    calls: list[str] = []

    def breaking(name):
        real = getattr(WHERE[name], name)

        def call(*args, **kwargs):
            calls.append(name)
            if name == stage and calls.count(name) == 1:
                raise Stop
            return real(*args, **kwargs)

        return call

    for name, where in WHERE.items():
        monkeypatch.setattr(where, name, breaking(name))
    with pytest.raises(Stop):
        pruned(work_dir=tmp_path / "work")
    calls_before = len(calls)
    result = pruned(work_dir=tmp_path / "work")
    assert same_bits(result, expected)
    again = calls[calls_before:]
    assert ("collect" in again) == (stage == "collect")
    assert ("sensitivities" in again) == (stage != "_finished")
    assert not (tmp_path / "work").exists()


def test_a_run_begun_with_other_settings_is_refused(tmp_path, monkeypatch):
    def stop(*_args, **_kwargs):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(stages, "sensitivities", stop)
        pruned(work_dir=tmp_path / "work")
    with pytest.raises(SettingsError, match="begun differently: seed was 0 and is 1"):
        pruned(work_dir=tmp_path / "work", seed=1)
    with pytest.raises(SettingsError, match="begun differently: weights was"):
        pruned(work_dir=tmp_path / "work", model=tiny_bert(initializer_range=0.3))


def test_methods_that_keep_nothing_say_so(tmp_path):
    with pytest.raises(SettingsError, match="leave out work_dir"):
        pruned(work_dir=tmp_path / "work", method="flap")


def test_killed_at_any_moment_the_command_goes_on_to_the_same_bits(tmp_path, word_tokenizer):
    model, texts = tmp_path / "model", tmp_path / "texts.txt"
    tiny_bert().save_pretrained(model)
    word_tokenizer.save_pretrained(model)
    words = sorted(word_tokenizer.get_vocab())[:30]
    draw = random.Random(0)
    texts.write_text("\n".join(" ".join(draw.choices(words, k=20)) for _ in range(200)))

    def command(output: Path) -> list[str]:
        return [
            *("-m", "stat_prune", "prune", str(model), "-d", str(texts)),
            *("--macs", "0.5", "--batch-size", "1", "--resume", "--overwrite", "-o", str(output)),
        ]

    assert Fork(command(tmp_path / "whole")).ended().returncode == 0
    for kill in range(3):
        process = Fork(command(tmp_path / "killed"))
        working = tmp_path / "killed.working"
        # Not before the pipeline has begun, and at another moment each time.
        while process.is_running() and not working.exists():
            time.sleep(0.01)
        time.sleep(draw.random() * 0.5 * (kill + 1))
        if process.is_running():
            os.kill(process.ids[0], signal.SIGKILL)
        process.ended()
    assert Fork(command(tmp_path / "killed")).ended().returncode == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not working.exists()
