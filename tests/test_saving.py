"""Saving replaces a folder as a whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hand_pruned import assert_same_model, build, cut, pruned

import stat_prune
from stat_prune.checkpoints.checkpoint import check_output_directory, save_checkpoint
from stat_prune.errors import SaveError
from stat_prune.machine import atomic

# Children are forked from a process that has imported what is slow to import, and done no more.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "stat_prune.checkpoints.checkpoint",
        "transformers.trainer",
        "transformers.models.bert.modeling_bert",
    ]
)


def test_an_existing_directory_is_kept_unless_overwrite_is_passed(tmp_path):
    first, second = cut(build("BertModel"), layer=0), cut(build("BertModel"), layer=1)
    save_checkpoint(tmp_path / "out", model=first, files={"old.txt": ""})
    with pytest.raises(SaveError, match="overwrite=True"):
        check_output_directory(tmp_path / "out")
    with pytest.raises(SaveError, match="overwrite=True"):
        save_checkpoint(tmp_path / "out", model=second)
    assert_same_model(stat_prune.load(tmp_path / "out"), first)
    save_checkpoint(tmp_path / "out", model=second, overwrite=True)
    assert_same_model(stat_prune.load(tmp_path / "out"), second)
    assert not (tmp_path / "out" / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_refuses_a_folder_that_is_no_saved_model(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(SaveError, match="no config.json"):
        check_output_directory(tmp_path / "thesis", overwrite=True)
    with pytest.raises(SaveError, match="is a file"):
        check_output_directory(tmp_path / "thesis" / "chapter.tex", overwrite=True)
    with pytest.raises(SaveError, match="not a writable folder"):
        check_output_directory(tmp_path / "thesis" / "chapter.tex" / "out")


def test_missing_parents_are_made_and_a_link_to_a_folder_stays_a_link(tmp_path):
    model = pruned("BertModel")
    save_checkpoint(tmp_path / "a" / "b" / "out", model=model)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b" / "out")
    save_checkpoint(tmp_path / "link", model=model, files={"new.txt": ""}, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "b" / "out" / "new.txt").exists()


@pytest.mark.parametrize("umask", [0o022, 0o007], ids=oct)
def test_saved_files_have_the_permissions_that_the_umask_gives(umask, tmp_path):
    model = pruned("BertModel")
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path / "out", model=model)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in modes
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch):
    first = cut(build("BertModel"), layer=0)
    save_checkpoint(tmp_path / "out", model=first)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SaveError, match="No space left on device.*Free some space"):
        save_checkpoint(tmp_path / "out", model=cut(build("BertModel"), layer=1), overwrite=True)
    monkeypatch.undo()
    assert_same_model(stat_prune.load(tmp_path / "out"), first)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def save_with_little_space(out: Path, result: Connection) -> None:
    model = cut(build("BertModel"), layer=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        save_checkpoint(out, model=model, overwrite=True)
    except SaveError as error:
        result.send(str(error))


def test_weights_that_cannot_be_written_are_a_save_error(tmp_path):
    first = cut(build("BertModel"), layer=0)
    save_checkpoint(tmp_path / "out", model=first)
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=save_with_little_space, args=(tmp_path / "out", sender))
    process.start()
    sender.close()
    assert "File too large" in receiver.recv()
    process.join()
    assert_same_model(stat_prune.load(tmp_path / "out"), first)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_change_places_where_the_system_has_no_exchange(tmp_path, monkeypatch):
    def unsupported(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(atomic, "_renameat2", unsupported)
    for text in ("old", "new"):
        with atomic.replace_directory(tmp_path / "out") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def save_forever(out: Path, ready: Event) -> None:
    models = [cut(build("BertModel"), layer=layer) for layer in (0, 1)]
    ready.set()
    while True:
        for layer, model in enumerate(models):
            save_checkpoint(out, model=model, files={"layer": str(layer)}, overwrite=True)


def test_a_process_killed_while_saving_leaves_the_old_folder_or_the_new_one(tmp_path):
    models = [cut(build("BertModel"), layer=layer) for layer in (0, 1)]
    out = tmp_path / "out"
    save_checkpoint(out, model=models[0], files={"layer": "0"})
    moments = random.Random(0)
    for _ in range(15):
        ready = PROCESSES.Event()
        process = PROCESSES.Process(target=save_forever, args=(out, ready))
        process.start()
        assert ready.wait(timeout=60)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.join()
        # Whole: weights, config, card and the file that was passed belong together.
        saved = models[int((out / "layer").read_text())]
        assert_same_model(stat_prune.load(out), saved)
        assert (out / "README.md").exists()
