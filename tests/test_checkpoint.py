"""Saved folders load to the bit in every way, and give ordinary models."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
import transformers
from hand_pruned import IDS, assert_same_model, build, cut, output, pruned
from isolation import outputs_without_stat_prune

import stat_prune
from stat_prune.checkpoints.checkpoint import save_checkpoint
from stat_prune.checkpoints.pretrained import load_pretrained
from stat_prune.errors import LoadError, SaveError
from stat_prune.model import modeling_stat_prune

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
    assert type(again).__module__ == "stat_prune.model.modeling_stat_prune"
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


def architectures(folder):
    return json.loads((folder / "config.json").read_text())["architectures"]


def test_folders_name_an_architecture_that_servers_have_no_code_of_their_own_for(tmp_path):
    """vLLM takes its own Llama where the name is LlamaForCausalLM, and passes over auto_map."""
    model = pruned("LlamaForCausalLM")
    save_checkpoint(tmp_path / "out", model=model)
    assert architectures(tmp_path / "out") == ["StatPruneLlamaForCausalLM"]
    assert not hasattr(transformers, "StatPruneLlamaForCausalLM")
    for number, load in enumerate((stat_prune.load, remote, load_pretrained)):
        loaded = load(str(tmp_path / "out"))
        assert_same_model(loaded, model)
        loaded.save_pretrained(tmp_path / str(number))
        assert architectures(tmp_path / str(number)) == ["StatPruneLlamaForCausalLM"]
        assert loaded.config.architectures == ["StatPruneLlamaForCausalLM"]
    cut(loaded, layer=1)
    save_checkpoint(tmp_path / "equal", model=loaded)
    assert architectures(tmp_path / "equal") == ["LlamaForCausalLM"]


def remote(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_the_pruned_class_says_no_types_of_arguments_that_cannot_be_looked_up(tmp_path):
    """vLLM looks them up, and stops where it cannot."""
    save_checkpoint(tmp_path / "out", model=pruned("LlamaForCausalLM"))
    for made in (modeling_stat_prune.LlamaForCausalLM, type(remote(tmp_path / "out"))):
        assert made.__init__.__annotations__ == {}


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


def test_biases_that_no_config_can_say_survive_where_layers_are_equal(tmp_path):
    model = build("LlamaForCausalLM")
    cut(model, layer=0, bias=torch.linspace(-1, 1, 32).double())
    model = cut(model, layer=1)
    assert model.model.layers[0].mlp.down_proj.bias.tolist() == torch.linspace(-1, 1, 32).tolist()
    assert model.model.layers[1].mlp.down_proj.bias is None
    save_checkpoint(tmp_path / "out", model=model)
    assert_same_model(stat_prune.load(tmp_path / "out"), model)
    remote = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    assert_same_model(remote, model)


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


@pytest.mark.parametrize("earlier", [1, 2])
def test_a_record_of_an_earlier_format_loads(earlier, tmp_path):
    model = pruned("BertModel")
    save_checkpoint(tmp_path / "out", model=model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["stat_prune"]["format"] = earlier
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert_same_model(stat_prune.load(tmp_path / "out"), model)


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
    with pytest.raises(LoadError, match="empty.*has neither model.safetensors nor"):
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
    with pytest.raises(SaveError, match="Mine is not a class that transformers knows"):
        save_checkpoint(tmp_path / "out", model=model)
    assert list(tmp_path.iterdir()) == []
