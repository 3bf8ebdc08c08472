"""A run that was broken off goes on where it was, and nothing half-made is ever to be seen."""

from __future__ import annotations

import errno
import json
import multiprocessing
import random
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama

import stat_prune
from stat_prune.errors import SaveError, SettingsError
from stat_prune.machine import atomic
from stat_prune.pipeline import workspace
from stat_prune.pipeline.foreseeing import streaming_requirements as requirements
from stat_prune.pipeline.on_disk import layer_pass, variants

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "stat_prune.pipeline.on_disk",
        "transformers.trainer",
        "transformers.models.llama.modeling_llama",
    ]
)

TARGET = stat_prune.MACs(0.6)


@pytest.fixture
def dense(tmp_path) -> Path:
    return saved(tmp_path / "dense")


def saved(folder: Path) -> Path:
    tiny_llama(num_hidden_layers=3).save_pretrained(folder, max_shard_size="10KB")
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, bytes]:
    """What a run leaves that nothing breaks off."""
    folder = tmp_path_factory.mktemp("unbroken")
    prune(saved(folder / "dense"), folder / "out")
    return contents(folder / "out")


def examples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (40,), generator=generator).tolist()
    return [{"input_ids": torch.randint(4, 60, (n,), generator=generator)} for n in lengths]


def prune(dense: Path, out: Path, **options: Any) -> Any:
    torch.set_num_threads(1)
    settings = {"target": TARGET, "batch_size": 7, "progress": False} | options
    return stat_prune.prune_checkpoint(dense, examples(), output_dir=out, **settings)


def resume_in_child(dense: Path, out: Path, begun: Event) -> None:
    begun.set()
    prune(dense, out, resume=True)


def noting(layers: set[int], run_layer: Any) -> Any:
    """`run_layer`, which adds the layer that it runs."""
    return lambda *args: layers.add(args[1]) or run_layer(*args)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the report, which says how long the run took."""
    files = [path for path in folder.iterdir() if path.name != "stat_prune_report.json"]
    return {path.name: path.read_bytes() for path in files if path.name != "README.md"}


def test_killed_at_any_moment_and_resumed_the_result_is_bit_equal(dense, tmp_path):
    start = time.perf_counter()
    prune(dense, tmp_path / "unbroken")
    duration = time.perf_counter() - start
    wanted, out = contents(tmp_path / "unbroken"), tmp_path / "out"
    moments = random.Random(0)
    for _ in range(10):
        begun = PROCESSES.Event()
        process = PROCESSES.Process(target=resume_in_child, args=(dense, out, begun))
        process.start()
        assert begun.wait(timeout=120)
        time.sleep(moments.uniform(0.0, duration))
        process.kill()
        process.join()
        if out.exists():
            assert contents(out) == wanted
            if not Path(f"{out}.working").exists():
                break
    else:
        prune(dense, out, resume=True)
    assert contents(out) == wanted
    visible = {path.name for path in tmp_path.iterdir() if ".saving-" not in path.name}
    assert visible == {"dense", "unbroken", "out"}


@pytest.mark.parametrize(
    ("piece", "walked", "compared"),
    [
        ("layer-0001", {1, 2}, {0, 1, 2}),
        ("distances", set(), {0, 1, 2}),
        ("compared-0001", set(), {1, 2}),
        ("compared", set(), set()),
        ("pruned-0000", set(), set()),
        ("pruned-0002", set(), set()),
    ],
)
def test_a_full_disk_keeps_what_is_finished_for_a_resume(
    piece, walked, compared, dense, unbroken, tmp_path, monkeypatch
):
    replace_directory = workspace.replace_directory

    def full(directory, **options):
        if directory.name == piece:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace_directory(directory, **options)

    monkeypatch.setattr(workspace, "replace_directory", full)
    with pytest.raises(SaveError, match="No space left on device.*resume=True"):
        prune(dense, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    passed: dict[Any, set[int]] = {layer_pass: set(), variants: set()}
    for module, layers in passed.items():
        monkeypatch.setattr(module, "run_layer", noting(layers, module.run_layer))

    prune(dense, tmp_path / "out", resume=True)

    assert contents(tmp_path / "out") == unbroken
    assert passed == {layer_pass: walked, variants: compared}


def test_a_run_killed_while_it_tidied_up_leaves_nothing_to_go_on_with(dense, tmp_path, monkeypatch):
    def stop(path: Path | str, **_options: Any) -> None:
        if Path(path).name.startswith("out.working") and Path(path).exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic.shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        prune(dense, tmp_path / "out")
    monkeypatch.undo()

    assert (tmp_path / "out" / "config.json").is_file()
    assert not (tmp_path / "out.working").exists()


def test_a_run_killed_when_all_was_done_but_tidying_up_is_finished_by_a_resume(
    dense, tmp_path, monkeypatch
):
    def stop(_self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workspace.Workspace, "delete", stop)
    with pytest.raises(KeyboardInterrupt):
        prune(dense, tmp_path / "out")
    monkeypatch.undo()
    wanted = contents(tmp_path / "out")

    prune(dense, tmp_path / "out", resume=True)

    assert contents(tmp_path / "out") == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


def test_too_little_space_is_an_error_before_any_work(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(
        requirements.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})
    )
    with pytest.raises(SaveError, match="will take .* GiB, and 0.0 GiB are free"):
        prune(dense, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.fixture
def broken_off(dense, tmp_path, monkeypatch) -> Path:
    """The output folder of a run that has finished its first layer."""

    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layer_pass.LayerPass, "distances", stop)
    with pytest.raises(KeyboardInterrupt):
        prune(dense, tmp_path / "out")
    monkeypatch.undo()
    return tmp_path / "out"


def test_a_run_that_was_begun_is_not_begun_again_unasked(dense, broken_off):
    with pytest.raises(SettingsError, match="broken off. Pass resume=True"):
        prune(dense, broken_off)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"target": stat_prune.MACs(0.5)}, "target was MACs"),
        ({"num_calibration_samples": 10}, "num_calibration_samples was 512 and is 10"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(options, named, dense, broken_off):
    with pytest.raises(SettingsError, match=named):
        prune(dense, broken_off, resume=True, **options)


def test_a_run_is_not_resumed_on_another_checkpoint(dense, broken_off):
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(SettingsError, match="config.json was"):
        prune(dense, broken_off, resume=True)


def test_a_folder_of_something_else_is_no_working_folder(dense, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(SettingsError, match="not the working folder of a run"):
        prune(dense, tmp_path / "out", work_dir=tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(dense, broken_off):
    before = torch.load(Path(f"{broken_off}.working") / "layer-0002" / "seconds.pt")
    report = prune(dense, broken_off, resume=True).report
    assert report.seconds["collect and probe"] >= before["collect and probe"] > 0
