"""Saved folders: whole at every moment, and bit-equal however they are loaded."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import random
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
import transformers
from isolation import outputs_without_stat_prune
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

import stat_prune
from stat_prune import atomic, modeling_stat_prune
from stat_prune.architectures import find_blocks
from stat_prune.blocks import linear
from stat_prune.checkpoint import (
    as_pruned_class,
    check_output_directory,
    save_checkpoint,
)
from stat_prune.correction import FoldedConsumer
from stat_prune.errors import LoadError, SaveError
from stat_prune.surgery import apply

# Children are forked from a process that has imported what is slow to import, and done no more.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["stat_prune.checkpoint", "transformers.trainer", "transformers.models.bert.modeling_bert"]
)

IDS = torch.tensor([[5, 9, 3, 17, 8, 2, 30, 11], [4, 4, 21, 39, 6, 12, 7, 1]])

ENCODER = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
DECODER = ENCODER | {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "Bert": lambda: transformers.BertConfig(**ENCODER),
    "Roberta": lambda: transformers.RobertaConfig(**ENCODER),
    "Electra": lambda: transformers.ElectraConfig(**ENCODER, embedding_size=16),
    "DistilBert": lambda: transformers.DistilBertConfig(
        vocab_size=50, dim=32, n_heads=4, n_layers=2, hidden_dim=48, max_position_embeddings=40
    ),
    "Llama": lambda: transformers.LlamaConfig(**DECODER),
    "Qwen3": lambda: transformers.Qwen3Config(**DECODER),
}
CLASSES = [
    ("BertModel", "AutoModel", "float32"),
    ("BertForMaskedLM", "AutoModelForMaskedLM", "float32"),
    ("BertForTokenClassification", "AutoModelForTokenClassification", "bfloat16"),
    ("DistilBertModel", "AutoModel", "float32"),
    ("DistilBertForMaskedLM", "AutoModelForMaskedLM", "bfloat16"),
    ("RobertaForSequenceClassification", "AutoModelForSequenceClassification", "float32"),
    ("ElectraForQuestionAnswering", "AutoModelForQuestionAnswering", "float32"),
    ("LlamaModel", "AutoModel", "bfloat16"),
    ("LlamaForCausalLM", "AutoModelForCausalLM", "float32"),
    ("Qwen3ForCausalLM", "AutoModelForCausalLM", "float16"),
]
FAMILY_CLASSES = pytest.mark.parametrize(("class_name", "auto_class", "dtype"), CLASSES)


def build(class_name: str, dtype: str = "float32") -> PreTrainedModel:
    """A tiny stock model with random weights."""
    family = max((name for name in CONFIGS if class_name.startswith(name)), key=len)
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    return model_class._from_config(CONFIGS[family](), dtype=getattr(torch, dtype)).eval()


def cut(model: PreTrainedModel, layer: int = 0, kinds: tuple[str, ...] = ("heads", "neurons")):
    """Drop units of one layer without any correction: unequal layers, in place."""
    folded = []
    for block in find_blocks(model):
        if block.layer == layer and block.kind in kinds:
            units = torch.tensor([0, 3]) if block.kind == "heads" else torch.arange(5, 38)
            weight = linear(model.base_model, block.consumer).weight.double()
            weight = weight[:, block.channels(units)]
            folded.append(FoldedConsumer(block, units, weight, None, 0.0))
    apply(model, folded)
    return as_pruned_class(model)


def pruned(class_name: str, dtype: str = "float32") -> PreTrainedModel:
    return cut(build(class_name, dtype))


@torch.no_grad()
def output(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS)[0]


def assert_same_model(loaded: PreTrainedModel, model: PreTrainedModel) -> None:
    assert type(loaded).__name__ == type(model).__name__
    expected, actual = model.state_dict(), loaded.state_dict()
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype
        assert torch.equal(actual[name], expected[name]), name
    assert torch.equal(output(loaded), output(model))


@FAMILY_CLASSES
def test_our_loader_gives_the_saved_model_to_the_bit(tmp_path, class_name, auto_class, dtype):
    model = pruned(class_name, dtype)
    save_checkpoint(tmp_path / "out", model=model)
    assert_same_model(stat_prune.load(tmp_path / "out"), model)


@FAMILY_CLASSES
def test_auto_classes_give_the_saved_model_to_the_bit(tmp_path, class_name, auto_class, dtype):
    model = pruned(class_name, dtype)
    save_checkpoint(tmp_path / "out", model=model)
    loader = getattr(transformers, auto_class)
    loaded = loader.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert "transformers_modules" in type(loaded).__module__
    assert_same_model(loaded, model)


def test_the_folder_loads_bit_equal_where_stat_prune_cannot_be_imported(tmp_path):
    folders, expected = [], []
    for class_name, auto_class, dtype in CLASSES:
        model = pruned(class_name, dtype)
        # The same last name, as transformers caches modeling files by it.
        folders.append((tmp_path / class_name / "out", auto_class))
        expected.append(output(model))
        save_checkpoint(folders[-1][0], model=model)
    for actual, wanted in zip(
        outputs_without_stat_prune(folders, IDS, tmp_path), expected, strict=True
    ):
        assert torch.equal(actual, wanted)


def test_a_head_class_folder_also_gives_the_base_model_and_a_new_head(tmp_path):
    model = pruned("BertForMaskedLM")
    save_checkpoint(tmp_path / "out", model=model)
    base = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    head = stat_prune.load(tmp_path / "out", auto_class="AutoModelForSequenceClassification")
    for loaded in (base, head.bert):
        hidden = model.bert(input_ids=IDS).last_hidden_state
        assert torch.equal(loaded(input_ids=IDS).last_hidden_state, hidden)


def test_a_base_model_folder_also_gives_a_head_class(tmp_path):
    model = pruned("LlamaModel")
    save_checkpoint(tmp_path / "out", model=model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    assert torch.equal(output(loaded.model), output(model))


def test_saved_folders_of_one_name_are_not_confused_in_one_process(tmp_path):
    first, second = cut(build("BertModel"), layer=0), cut(build("BertModel"), layer=1)
    for parent, model in (("a", first), ("b", second)):
        save_checkpoint(tmp_path / parent / "out", model=model)
    for parent, model in (("a", first), ("b", second), ("a", first)):
        loaded = transformers.AutoModel.from_pretrained(
            tmp_path / parent / "out", trust_remote_code=True
        )
        assert_same_model(loaded, model)


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "LlamaForCausalLM"])
def test_tied_weights_stay_tied(tmp_path, class_name):
    save_checkpoint(tmp_path / "out", model=pruned(class_name))
    loaded = stat_prune.load(tmp_path / "out")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("loader", ["in memory", "stat_prune", "transformers"])
def test_save_pretrained_again_gives_a_folder_that_loads(tmp_path, loader):
    model = pruned("BertForSequenceClassification")
    again = {"in memory": lambda: model}
    if loader != "in memory":
        save_checkpoint(tmp_path / "first", model=model)
        again = {
            "stat_prune": lambda: stat_prune.load(tmp_path / "first"),
            "transformers": lambda: transformers.AutoModelForSequenceClassification.from_pretrained(
                tmp_path / "first", trust_remote_code=True
            ),
        }
    again[loader]().save_pretrained(tmp_path / "second")
    assert_same_model(stat_prune.load(tmp_path / "second"), model)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "second", trust_remote_code=True
    )
    assert_same_model(loaded, model)


def test_a_folder_with_remote_code_can_be_pruned_further(tmp_path):
    save_checkpoint(tmp_path / "out", model=cut(build("BertModel"), layer=0))
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    again = cut(loaded, layer=1, kinds=("neurons",))
    assert type(again).__module__ == "stat_prune.modeling_stat_prune"
    save_checkpoint(tmp_path / "again", model=again)
    assert_same_model(stat_prune.load(tmp_path / "again"), again)


def test_pickle_and_deepcopy_keep_model_and_class():
    model = pruned("ElectraForQuestionAnswering")
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(twin) is type(model)
        assert_same_model(twin, model)


def test_the_pruned_class_is_a_subclass_of_the_stock_class_with_its_name():
    model = pruned("BertForMaskedLM")
    assert isinstance(model, transformers.BertForMaskedLM)
    assert type(model).__name__ == "BertForMaskedLM"
    assert type(model) is modeling_stat_prune.BertForMaskedLM


def test_a_model_made_from_the_config_alone_has_the_recorded_sizes():
    model = pruned("DistilBertForMaskedLM")
    fresh = modeling_stat_prune.DistilBertForMaskedLM(model.config)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in fresh.named_parameters()} == shapes


def test_equal_layers_of_a_config_that_can_say_so_load_without_any_flag(tmp_path):
    model = build("LlamaForCausalLM")
    cut(model, layer=0)
    model = cut(model, layer=1)
    save_checkpoint(tmp_path / "out", model=model)
    assert type(model) is transformers.LlamaForCausalLM
    assert not (tmp_path / "out" / "modeling_stat_prune.py").exists()
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same_model(loaded, model)
    assert_same_model(stat_prune.load(tmp_path / "out"), model)


def test_generate_works_on_the_reloaded_decoder(tmp_path):
    model = pruned("LlamaForCausalLM")
    save_checkpoint(tmp_path / "out", model=model)
    loaded = stat_prune.load(tmp_path / "out")
    tokens = {
        twin: twin.generate(IDS, max_new_tokens=6, do_sample=False) for twin in (model, loaded)
    }
    assert torch.equal(tokens[loaded], tokens[model])


def test_the_reloaded_model_trains_a_step_with_trainer(tmp_path):
    save_checkpoint(tmp_path / "out", model=pruned("BertForSequenceClassification"))
    model = stat_prune.load(tmp_path / "out")
    before = copy.deepcopy(model.state_dict())
    examples = [{"input_ids": row, "labels": torch.tensor(1)} for row in IDS]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=examples)
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(model.state_dict()[name], before[name])
    assert_same_model(stat_prune.load(tmp_path / "trained"), model.eval())


def test_pipeline_takes_the_model_and_the_folder(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    model = pruned("BertForSequenceClassification")
    save_checkpoint(tmp_path / "out", model=model, tokenizer=tokenizer)
    direct = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    folder = transformers.pipeline(
        "text-classification", model=str(tmp_path / "out"), trust_remote_code=True
    )
    assert direct("good film") == folder("good film")


def test_the_folder_has_a_model_card_and_the_files_that_were_passed(tmp_path):
    save_checkpoint(tmp_path / "out", model=pruned("BertModel"), files={"report.json": "{}"})
    assert (tmp_path / "out" / "report.json").read_text() == "{}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'AutoModel.from_pretrained("out", trust_remote_code=True)' in card


def test_a_record_of_an_unknown_format_is_refused(tmp_path):
    save_checkpoint(tmp_path / "out", model=pruned("BertModel"))
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["stat_prune"]["format"] = 99
    path.write_text(json.dumps(config))
    with pytest.raises(LoadError, match="format 99 .* newest stat-prune"):
        stat_prune.load(tmp_path / "out")


def test_loading_runs_no_code_of_the_folder(tmp_path):
    model = pruned("BertModel")
    save_checkpoint(tmp_path / "out", model=model)
    (tmp_path / "out" / "modeling_stat_prune.py").write_text("raise SystemExit('ran')")
    assert_same_model(stat_prune.load(tmp_path / "out"), model)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(LoadError, match="nowhere.*not a folder"):
        stat_prune.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="empty.*cannot be loaded"):
        stat_prune.load(tmp_path / "empty")
    save_checkpoint(tmp_path / "out", model=pruned("BertModel"))
    with pytest.raises(LoadError, match="AutoModelForVision.*'bert'.*AutoModelForMaskedLM"):
        stat_prune.load(tmp_path / "out", auto_class="AutoModelForVision")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(LoadError, match="damaged"):
        stat_prune.load(tmp_path / "out")


def test_a_model_class_of_ones_own_is_refused_before_anything_is_written(tmp_path):
    class Mine(transformers.BertModel):
        pass

    model = pruned("BertModel")
    model.__class__ = Mine
    with pytest.raises(SaveError, match="Mine is not a class of transformers"):
        save_checkpoint(tmp_path / "out", model=model)
    assert list(tmp_path.iterdir()) == []


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
