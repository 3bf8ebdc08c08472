"""A working folder is one run's at a time, and a run that has ended can be resumed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_pruned import assert_same_model
from tiny_models import tiny_bert, tiny_llama

import stat_prune
from stat_prune import MACs
from stat_prune.errors import SaveError, SettingsError
from stat_prune.pipeline import loaded_model, stages
from stat_prune.pipeline.on_disk import layer_pass
from stat_prune.pipeline.workspace import Workspace

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["stat_prune.pipeline.on_disk"])
GENERATOR = torch.Generator().manual_seed(3)
ROWS = [{"input_ids": torch.randint(4, 40, (12,), generator=GENERATOR)} for _ in range(40)]


def prune(folder: Path, **options: Any) -> Any:
    settings = {"target": MACs(0.6), "work_dir": folder / "work", "progress": False} | options
    model = settings.pop("model", None) or tiny_bert()
    return stat_prune.prune(model, ROWS, output_dir=folder / "out", **settings)


def stream(folder: Path, **options: Any) -> Any:
    settings = {"target": MACs(0.6), "work_dir": folder / "work", "progress": False} | options
    return stat_prune.prune_checkpoint(
        folder / "dense", ROWS, output_dir=folder / "out", resume=True, **settings
    )


@pytest.fixture(params=[prune, stream], ids=["in memory", "layer at a time"])
def run(request, tmp_path) -> Callable[..., Any]:
    if request.param is stream:
        tiny_llama().save_pretrained(tmp_path / "dense")
    return request.param


def hold(folder: Path, ready: Event) -> None:
    workspace = Workspace(folder, {}, resume=True)
    assert workspace.folder == folder
    ready.set()
    time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """Another process that has the working folder."""
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(tmp_path / "work", ready))
    process.start()
    assert ready.wait(timeout=120)
    yield process
    process.kill()
    process.join()


def test_the_folder_of_a_live_run_is_refused_by_the_name_of_its_process(run, holder, tmp_path):
    with pytest.raises(SettingsError, match=f"in use by process {holder.pid} .*") as caught:
        run(tmp_path)
    assert "delete" not in str(caught.value)
    with pytest.raises(SettingsError, match=f"in use by process {holder.pid} .*") as caught:
        Workspace(tmp_path / "work", {}, resume=False)
    assert "delete" not in str(caught.value)
    assert (tmp_path / "work" / "manifest.json").exists()


def test_the_lock_of_a_process_that_was_killed_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.join()
    Workspace(tmp_path / "work", {}, resume=True).close()


def enter(folder: Path, start: Event, done: Any) -> None:
    start.wait()
    try:
        workspace = Workspace(folder, {}, resume=True)
    except SettingsError as error:
        done.put(str(error))
    else:
        done.put(os.getpid())
        time.sleep(600)
        workspace.close()


@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "a run broken off"])
def test_of_processes_that_enter_together_one_is_let_in(there, tmp_path):
    if there:
        Workspace(tmp_path / "work", {}, resume=True).close()
    start, done = PROCESSES.Event(), PROCESSES.Queue()
    processes = [
        PROCESSES.Process(target=enter, args=(tmp_path / "work", start, done)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    start.set()
    outcomes = [done.get(timeout=120) for _ in processes]
    for process in processes:
        process.kill()
        process.join()
    (entered,) = [one for one in outcomes if isinstance(one, int)]
    refused = [one for one in outcomes if isinstance(one, str)]
    assert all("in use by" in one for one in refused)
    assert any(f"process {entered}" in one for one in refused)


def test_two_threads_cannot_have_one_folder(tmp_path):
    workspace = Workspace(tmp_path / "work", {}, resume=True)
    errors: list[Exception] = []

    def enter_too() -> None:
        try:
            Workspace(tmp_path / "work", {}, resume=True)
        except SettingsError as error:
            errors.append(error)

    thread = threading.Thread(target=enter_too)
    thread.start()
    thread.join()
    assert f"process {os.getpid()}" in str(errors[0])
    workspace.close()


def test_a_run_that_failed_gives_its_folder_back(run, tmp_path, monkeypatch):
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("midway")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="midway") as caught:
        patch.setattr(stages, "sensitivities", fail)
        patch.setattr(layer_pass.LayerPass, "distances", fail)
        run(tmp_path)
    assert caught.traceback  # which still refers to the run
    run(tmp_path)
    assert not (tmp_path / "work").exists()


def test_an_empty_working_folder_that_is_there_is_used(run, tmp_path):
    (tmp_path / "work").mkdir()
    run(tmp_path)


def test_resuming_a_run_that_has_ended_gives_its_result(run, tmp_path, monkeypatch):
    first = run(tmp_path)

    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(loaded_model, "collect", never)
    monkeypatch.setattr(layer_pass.LayerPass, "measure", never)
    again = run(tmp_path)
    assert again.plan == first.plan
    assert again.report.to_dict() == first.report.to_dict()
    if run is prune:
        assert_same_model(again.model, first.model)
    names = {path.name for path in tmp_path.iterdir()} - {"dense"}
    assert names == {"out"}


def test_resuming_a_run_that_has_ended_with_other_settings_says_which(run, tmp_path):
    run(tmp_path)
    with pytest.raises(SaveError, match="exists|holds the result of another run: seed was 0"):
        run(tmp_path, seed=1)
    run(tmp_path, seed=1, overwrite=True)
    run(tmp_path, seed=1)


def test_a_result_that_was_changed_since_is_not_taken_for_that_of_the_run(tmp_path):
    prune(tmp_path)
    tiny_bert().save_pretrained(tmp_path / "out")
    shutil.copy(tmp_path / "out" / "config.json", tmp_path / "out" / "other.json")
    with pytest.raises(SaveError):
        prune(tmp_path, seed=1)


@pytest.fixture
def broken_off(run, tmp_path, monkeypatch) -> Path:
    def stop(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "sensitivities", stop)
        patch.setattr(layer_pass.LayerPass, "distances", stop)
        run(tmp_path)
    return tmp_path


def test_a_model_is_known_by_its_weights_and_not_by_the_time_of_its_files(run, broken_off):
    if run is stream:
        for path in (broken_off / "dense").iterdir():
            os.utime(path, (1, 1))
    run(broken_off)


def test_other_weights_of_the_same_size_and_time_are_another_model(run, broken_off):
    options = {}
    if run is prune:
        options["model"] = tiny_bert(initializer_range=0.1)
    else:
        times = {path.name: path.stat().st_mtime_ns for path in (broken_off / "dense").iterdir()}
        tiny_llama(initializer_range=0.1).save_pretrained(broken_off / "other")
        shutil.copy(broken_off / "other" / "model.safetensors", broken_off / "dense")
        for name, when in times.items():
            os.utime(broken_off / "dense" / name, ns=(when, when))
    with pytest.raises(SettingsError, match="begun differently: weights was"):
        run(broken_off, **options)
