"""No folder but a saved model is ever replaced, and no result is lost at the end of a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hand_pruned import assert_same_model
from tiny_models import SIZES, tiny_bert, tiny_llama
from torch import nn

import stat_prune
import stat_prune.exporting
from stat_prune import MACs, cli
from stat_prune.checkpoints.checkpoint import check_output_directory, save_checkpoint
from stat_prune.checkpoints.replacing import MANIFEST_FILE, check_apart
from stat_prune.errors import SaveError, SettingsError
from stat_prune.reporting.result import PruningResult

ROWS = [{"input_ids": torch.randint(4, 40, (12,))} for _ in range(40)]


def prune(model: Any, **options: Any) -> PruningResult:
    options = {"target": MACs(0.6), "progress": False} | options
    return stat_prune.prune(model, ROWS, **options)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def saved(tmp_path, word_tokenizer) -> Path:
    """A folder that `save` has written."""
    save_checkpoint(tmp_path / "out", model=tiny_bert(), tokenizer=word_tokenizer)
    return tmp_path / "out"


def test_a_folder_that_save_has_written_is_replaced(saved):
    check_output_directory(saved, overwrite=True)
    written = json.loads((saved / MANIFEST_FILE).read_text())["files"]
    assert sorted(written) == sorted(path.name for path in saved.iterdir())


def test_what_stock_save_pretrained_has_written_is_replaced(tmp_path, word_tokenizer):
    tiny_llama().save_pretrained(tmp_path / "stock", max_shard_size="10KB")
    word_tokenizer.save_pretrained(tmp_path / "stock")
    check_output_directory(tmp_path / "stock", overwrite=True)


def add_file(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")

    return add


ADDED: dict[str, Callable[[Path], Any]] = {
    "checkpoint-500": add_file("checkpoint-500/model.safetensors"),
    ".git": add_file(".git/HEAD"),
    "notes.txt": add_file("notes.txt"),
    "optimizer.pt": add_file("optimizer.pt"),
    "runs": lambda folder: (folder / "runs").mkdir(),
    "elsewhere": lambda folder: (folder / "elsewhere").symlink_to(folder.parent),
}


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
def test_what_was_put_beside_a_saved_model_is_named_and_kept(stock, name, saved):
    if stock:
        shutil.rmtree(saved)
        tiny_bert().save_pretrained(saved)
    ADDED[name](saved)
    before = contents(saved)
    with pytest.raises(SaveError, match=f"more than a saved model.*{name!r}"):
        check_output_directory(saved, overwrite=True)
    with pytest.raises(SaveError, match=f"{name!r}"):
        save_checkpoint(saved, model=tiny_bert(), overwrite=True)
    assert contents(saved) == before


def test_a_readme_that_is_no_model_card_is_kept(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "README.md").write_text("# Results of my thesis")
    with pytest.raises(SaveError, match=r"'README\.md'"):
        check_output_directory(tmp_path / "stock", overwrite=True)


@pytest.mark.parametrize(
    "config", ['{"name": "web-app", "port": 80}', '{"model_type": "bert"}', "[]", "{", "", "null"]
)
def test_a_project_with_a_config_of_its_own_is_kept(config, tmp_path):
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "config.json").write_text(config)
    (project / "src" / "main.py").write_text("print()")
    before = contents(project)
    with pytest.raises(SaveError, match="not a saved model.*'config.json', 'src'"):
        save_checkpoint(project, model=tiny_bert(), overwrite=True)
    assert contents(project) == before


def test_the_output_of_a_trainer_is_kept(tmp_path):
    model = tiny_bert(transformers.BertForSequenceClassification)
    examples = [{"input_ids": row["input_ids"], "labels": 1} for row in ROWS[:4]]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=examples)
    trainer.train()
    trainer.save_model()
    before = contents(tmp_path / "run")
    with pytest.raises(SaveError, match="'checkpoint-1'"):
        save_checkpoint(tmp_path / "run", model=tiny_bert(), overwrite=True)
    assert contents(tmp_path / "run") == before


def same(dense: Path) -> Path:
    return dense


def linked(dense: Path) -> Path:
    link = dense.with_name("link")
    link.symlink_to(dense)
    return link


def dotted(dense: Path) -> Path:
    return dense / ".." / dense.name


def parent(dense: Path) -> Path:
    return dense.parent


def within(dense: Path) -> Path:
    tiny_bert().save_pretrained(dense / "inner")
    return dense / "inner"


def of_symbolic_links(dense: Path) -> Path:
    """The dense model's files are in the output folder; its own folder has links to them."""
    there = dense.with_name("blobs")
    there.mkdir()
    for path in list(dense.iterdir()):
        path.rename(there / path.name)
        path.symlink_to(there / path.name)
    return there


def of_hard_links(dense: Path) -> Path:
    there = dense.with_name("copy")
    there.mkdir()
    for path in dense.iterdir():
        os.link(path, there / path.name)
    return there


OVERLAPS = [same, linked, dotted, parent, within, of_symbolic_links, of_hard_links]
OVERLAPPING = pytest.mark.parametrize("place", OVERLAPS, ids=lambda place: place.__name__)


@pytest.fixture
def dense(tmp_path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "models" / "dense")
    return tmp_path / "models" / "dense"


@OVERLAPPING
@pytest.mark.parametrize("way", ["in memory", "layer at a time", "save"])
def test_an_output_that_has_to_do_with_the_input_is_refused(place, way, dense):
    out = place(dense)
    before = contents(dense.parent)
    model = stat_prune.load(dense)
    with pytest.raises(SaveError, match="pruned|saved model"):
        if way == "in memory":
            prune(model, output_dir=out, overwrite=True)
        elif way == "layer at a time":
            stat_prune.prune_checkpoint(
                dense, ROWS, target=MACs(0.6), output_dir=out, overwrite=True, progress=False
            )
        else:
            prune(model).save(out, overwrite=True)
    assert contents(dense.parent) == before


@OVERLAPPING
def test_the_command_line_refuses_it_before_any_work(place, dense, word_tokenizer, tmp_path):
    word_tokenizer.save_pretrained(dense)
    (tmp_path / "texts.txt").write_text("the cat sat\n" * 40)
    out = place(dense)
    before = contents(dense.parent)
    command = ["prune", str(dense), "-d", str(tmp_path / "texts.txt"), "--macs", "0.6"]
    with pytest.raises(SaveError, match="pruned|saved model"):
        cli.app([*command, "-o", str(out), "--overwrite"], standalone_mode=False)
    assert contents(dense.parent) == before


def test_a_new_folder_within_the_input_is_allowed(dense):
    prune(stat_prune.load(dense), output_dir=dense / "pruned")
    assert (dense / "pruned" / "model.safetensors").exists()


def test_a_result_can_be_saved_again_in_its_own_place(dense, tmp_path):
    result = prune(stat_prune.load(dense))
    for _ in range(2):
        result.save(tmp_path / "out", overwrite=True)
    assert_same_model(stat_prune.load(tmp_path / "out"), result.model)


def test_names_of_the_hub_are_no_folders(tmp_path):
    check_apart(tmp_path / "out", "nobody/nothing")
    check_apart(tmp_path / "out", None)


class TwoHeads(transformers.BertPreTrainedModel):
    """A class that transformers does not know."""

    def __init__(self, config: transformers.BertConfig) -> None:
        super().__init__(config)
        self.bert, self.head = transformers.BertModel(config), nn.Linear(32, 2)
        self.post_init()

    def forward(self, input_ids: Any = None, attention_mask: Any = None) -> Any:
        return (self.head(self.bert(input_ids, attention_mask)[1]),)


def refused_generation_config() -> transformers.PreTrainedModel:
    model = tiny_llama()
    model.generation_config.temperature = 0.9  # without do_sample
    return model


def refused_config() -> transformers.PreTrainedModel:
    model = tiny_llama()
    model.config.num_attention_heads = 5  # which do not divide the hidden size
    return model


UNSAVABLE: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "TwoHeads": lambda: TwoHeads(transformers.BertConfig(**SIZES)).eval(),
    "generation_config": refused_generation_config,
    "config": refused_config,
}


@pytest.mark.parametrize("what", UNSAVABLE)
def test_what_cannot_be_saved_is_known_before_any_forward_pass(what, tmp_path):
    model, calls = UNSAVABLE[what](), []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(SaveError, match=what):
        prune(model, output_dir=tmp_path / "out", work_dir=tmp_path / "work")
    assert not calls
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_cannot_be_saved_is_known_before_any_work(word_tokenizer, dense, tmp_path):
    class Broken(type(word_tokenizer)):
        def save_pretrained(self, *_args: Any, **_kwargs: Any) -> None:
            raise RuntimeError("no such vocabulary")

    tokenizer = Broken(tokenizer_object=word_tokenizer.backend_tokenizer, pad_token="[PAD]")
    settings = {"tokenizer": tokenizer, "output_dir": tmp_path / "out", "progress": False}
    for run in (
        lambda: stat_prune.prune(tiny_bert(), ROWS, target=MACs(0.6), **settings),
        lambda: stat_prune.prune_checkpoint(dense, ROWS, target=MACs(0.6), **settings),
    ):
        with pytest.raises(SaveError, match="tokenizer cannot be saved: no such vocabulary"):
            run()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_name_that_no_folder_can_have_is_an_error_before_any_work(tmp_path):
    for name in ("x" * 250, "x" * 300, f"a/{'y' * 300}/b"):
        with pytest.raises(SaveError, match="cannot be made: File name too long"):
            prune(tiny_bert(), output_dir=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("out", "work"), [("a", "a"), ("a", "a/work"), ("work/out", "work")])
def test_working_folder_and_output_are_not_one_in_the_other(out, work, tmp_path):
    with pytest.raises(SaveError, match="one in the other"):
        prune(tiny_bert(), output_dir=tmp_path / out, work_dir=tmp_path / work)


@pytest.fixture(params=[OSError(28, "No space left on device"), RuntimeError("odd"), ValueError()])
def failing(request, monkeypatch) -> Exception:
    """What saving fails with, at the very end."""

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise request.param

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", fail)
    return request.param


@pytest.mark.parametrize("kept", [False, True], ids=["without work_dir", "with work_dir"])
def test_if_saving_fails_all_the_same_the_result_is_kept_and_the_error_says_where(
    kept, failing, tmp_path, monkeypatch
):
    work = {"work_dir": tmp_path / "work"} if kept else {}
    with pytest.raises(SaveError, match="pruned model is kept in '.*unsaved") as caught:
        prune(tiny_llama(), output_dir=tmp_path / "out", **work)
    result = caught.value.result
    (folder,) = tmp_path.glob("out.unsaved-*")
    assert str(folder) in str(caught.value)
    assert_same_model(stat_prune.load(folder), result.model)
    assert json.loads((folder / "stat_prune_plan.json").read_text()) == result.plan
    monkeypatch.undo()
    result.save(tmp_path / "elsewhere")
    assert_same_model(stat_prune.load(tmp_path / "elsewhere"), result.model)
    assert (tmp_path / "work").exists() == kept


def test_an_output_folder_that_appears_meanwhile_is_kept_and_so_is_the_result(tmp_path):
    model = tiny_bert()

    def appear(*_args: Any) -> None:
        add_file("notes.txt")(tmp_path / "out")

    model.base_model.register_forward_hook(appear)
    with pytest.raises(SaveError, match="exists.*kept in") as caught:
        prune(model, output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert caught.value.result.report.after.parameters > 0


def test_where_nothing_can_be_written_the_error_has_the_result(tmp_path, monkeypatch):
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    monkeypatch.setattr("stat_prune.pipeline.saving.save_file", full)
    with pytest.raises(SaveError, match="No other place .* `result` of this error") as caught:
        prune(tiny_bert(), output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert caught.value.result.model(ROWS[0]["input_ids"][None]) is not None


def test_a_bind_mount_of_the_input_is_the_input(dense, tmp_path):
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "--bind", dense, mount], capture_output=True).returncode:
        pytest.skip("this system mounts nothing for these tests")
    try:
        with pytest.raises(SaveError, match="is the folder of the model"):
            prune(stat_prune.load(dense), output_dir=mount, overwrite=True)
    finally:
        subprocess.run(["umount", mount], check=True)


def test_no_folder_is_called_by_the_sign_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_bert()
    result = prune(model, effort="fast")
    writes: list[Callable[[], Any]] = [
        lambda: result.save("~/out"),
        lambda: result.export("~/out", to="onnx"),
        lambda: prune(model, output_dir="~/out"),
        lambda: prune(model, work_dir="~work/out"),
    ]
    for write in writes:
        with pytest.raises(SettingsError, match="expanduser"):
            write()
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_neither_its_model_nor_another_kind_of_file(saved, tmp_path):
    model, before = stat_prune.load(saved), contents(saved)
    for place in (saved, saved.parent):
        with pytest.raises(SaveError, match="model that is to be exported"):
            stat_prune.exporting.export(model, place, "onnx", overwrite=True)
    decoder = tiny_llama()
    with pytest.raises(SaveError, match="no GGUF file"):
        stat_prune.exporting.export(decoder, saved / "model.safetensors", "gguf", overwrite=True)
    assert contents(saved) == before
