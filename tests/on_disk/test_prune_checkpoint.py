"""Pruning a checkpoint layer by layer gives what pruning the whole model in memory gives."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from isolation import outputs_without_stat_prune
from tiny_models import tiny_bert, tiny_llama
from transformers import BertForSequenceClassification, PreTrainedModel

import stat_prune
from stat_prune.checkpoints.layer_weights import Checkpoint
from stat_prune.checkpoints.replacing import MANIFEST_FILE, PLAN_FILE, REPORT_FILE
from stat_prune.errors import SaveError
from stat_prune.families import transformer_layers
from stat_prune.pipeline.on_disk import layer_pass, variants
from stat_prune.reporting import result as results
from stat_prune.reporting.report import PruningReport

WORDS = "the a cat dog bird sat ran flew on under over mat tree house and then it was very".split()
_random = random.Random(0)
TEXTS = [" ".join(_random.choices(WORDS, k=_random.randint(4, 20))) for _ in range(60)]

#: What is compared layer by layer and in memory alike.
LIKE = {"effort": "fast", "progress": False}


def bert_with_twin_neurons() -> PreTrainedModel:
    """Of one block only, the statistics need products in float64."""
    model = tiny_bert(BertForSequenceClassification, num_hidden_layers=3)
    twins = model.bert.encoder.layer[1].intermediate.dense
    with torch.no_grad():
        twins.weight[1] = twins.weight[0]
    return model


MODELS = {
    "bert-twins": bert_with_twin_neurons,
    "bert": lambda: tiny_bert(BertForSequenceClassification, num_hidden_layers=3),
    "llama": lambda: tiny_llama(num_hidden_layers=3),
    "llama-tied": lambda: tiny_llama(tie_word_embeddings=True),
    "llama-bfloat16": lambda: tiny_llama().to(torch.bfloat16),
    "llama-float16": lambda: tiny_llama().to(torch.float16),
}


def saved(model: PreTrainedModel, folder: Path, tokenizer) -> PreTrainedModel:
    """A checkpoint of several shards, and the model in it."""
    model.save_pretrained(folder, max_shard_size="10KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return stat_prune.load(folder)


def assert_same(result: stat_prune.PruningResult, pruned, *, tolerance: float = 1e-5) -> None:
    """The plan is the same, and weights are to rounding."""
    assert pruned.plan == result.plan
    wanted, found = result.model.state_dict(), stat_prune.load(pruned.directory).state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        distance = (found[name].double() - tensor.double()).norm()
        assert distance <= tolerance * tensor.double().norm(), name


@pytest.mark.parametrize("name", MODELS)
def test_plan_weights_and_report_are_those_of_prune_in_memory(name, tmp_path, word_tokenizer):
    model = saved(MODELS[name](), tmp_path / "dense", word_tokenizer)
    options = {"target": stat_prune.MACs(0.6), "batch_size": 7, **LIKE}
    whole = stat_prune.prune(model, TEXTS, tokenizer=word_tokenizer, **options)

    pruned = stat_prune.prune_checkpoint(
        tmp_path / "dense", TEXTS, output_dir=tmp_path / "out", **options
    )

    assert_same(whole, pruned)
    assert pruned.report.blocks == whole.report.blocks
    assert (pruned.report.before, pruned.report.after) == (whole.report.before, whole.report.after)
    assert pruned.report.predicted_distance == whole.report.predicted_distance
    saved_report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert PruningReport.from_dict(saved_report).blocks == whole.report.blocks
    assert json.loads((tmp_path / "out" / PLAN_FILE).read_text()) == whole.plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "magnitude"},
        {"method": "id-unweighted", "target": stat_prune.Tolerance(0.3)},
        {"method": "random-corrected", "seed": 3},
        {"uniform": True, "round_to": 8},
        {"ignore": [0, 2], "target": stat_prune.MACs(0.8)},
        {"target": stat_prune.Parameters({"neurons": 0.5})},
        {"precision": "float32"},
        {"objective": "pooled"},
        {"objective": "logits", "num_calibration_samples": 20},
    ],
    ids=str,
)
def test_settings_do_what_they_do_in_memory(options, tmp_path, word_tokenizer):
    model = saved(tiny_llama(num_hidden_layers=3), tmp_path / "dense", word_tokenizer)
    options = {"target": stat_prune.MACs(0.6), "batch_size": 7, **LIKE} | options
    whole = stat_prune.prune(model, TEXTS, tokenizer=word_tokenizer, **options)
    pruned = stat_prune.prune_checkpoint(
        tmp_path / "dense", TEXTS, output_dir=tmp_path / "out", **options
    )
    assert_same(whole, pruned)


def test_long_texts_are_cut_for_probes_as_in_memory(tmp_path, word_tokenizer):
    model = tiny_llama(num_hidden_layers=3, max_position_embeddings=128)
    model = saved(model, tmp_path / "dense", word_tokenizer)
    ids = torch.randint(3, 40, (12, 120), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row} for row in ids]
    options = {"target": stat_prune.MACs(0.6), "batch_size": 5, **LIKE}
    whole = stat_prune.prune(model, data, tokenizer=word_tokenizer, **options)

    pruned = stat_prune.prune_checkpoint(
        tmp_path / "dense", data, output_dir=tmp_path / "out", **options
    )

    assert_same(whole, pruned)
    assert pruned.report.blocks == whole.report.blocks


def test_the_folder_loads_without_stat_prune(tmp_path, word_tokenizer):
    model = saved(tiny_llama(), tmp_path / "dense", word_tokenizer)
    options = {"target": stat_prune.MACs(0.6), **LIKE}
    whole = stat_prune.prune(model, TEXTS, tokenizer=word_tokenizer, **options)
    stat_prune.prune_checkpoint(tmp_path / "dense", TEXTS, output_dir=tmp_path / "out", **options)
    ids = torch.tensor([[5, 9, 3, 17, 8, 2, 13, 11]])

    (tmp_path / "work").mkdir()
    (found,) = outputs_without_stat_prune(
        [(tmp_path / "out", "AutoModelForCausalLM")], ids, tmp_path / "work"
    )

    with torch.no_grad():
        assert torch.equal(found, whole.model(ids)[0])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()


def test_a_pruned_checkpoint_can_be_pruned_again(tmp_path, word_tokenizer):
    saved(tiny_llama(), tmp_path / "dense", word_tokenizer)
    options = {"batch_size": 7, **LIKE}
    stat_prune.prune_checkpoint(
        tmp_path / "dense",
        TEXTS,
        output_dir=tmp_path / "once",
        target=stat_prune.MACs(0.8),
        **options,
    )
    once = stat_prune.load(tmp_path / "once")
    whole = stat_prune.prune(
        once, TEXTS, tokenizer=word_tokenizer, target=stat_prune.MACs(0.7), **options
    )
    twice = stat_prune.prune_checkpoint(
        tmp_path / "once",
        TEXTS,
        output_dir=tmp_path / "twice",
        target=stat_prune.MACs(0.7),
        **options,
    )
    assert_same(whole, twice)


@pytest.mark.parametrize("method", ["stat", "id-unweighted"])
def test_weights_of_one_layer_are_in_memory_at_a_time(
    method, tmp_path, word_tokenizer, monkeypatch
):
    saved(tiny_llama(num_hidden_layers=4), tmp_path / "dense", word_tokenizer)
    in_memory: list[set[int]] = []
    embeddings: list[int] = []

    run_layer = layer_pass.run_layer

    def watched(model, layer, *arguments, embedded=True):
        layers = transformer_layers(model)
        in_memory.append(
            {n for n, one in enumerate(layers) if not all(p.is_meta for p in one.parameters())}
        )
        storage = model.get_input_embeddings().weight.untyped_storage()
        # Probes enter the first layer from the embeddings themselves.
        embeddings.append(storage.nbytes() if layer or embedded else 0)
        return run_layer(model, layer, *arguments)

    monkeypatch.setattr(
        layer_pass, "run_layer", partial(watched, embedded=method == "id-unweighted")
    )
    monkeypatch.setattr(variants, "run_layer", watched)
    stat_prune.prune_checkpoint(
        tmp_path / "dense",
        TEXTS,
        output_dir=tmp_path / "out",
        target=stat_prune.MACs(0.6),
        method=method,
        progress=False,
    )

    assert all(len(layers) == 1 for layers in in_memory)
    assert set.union(*in_memory) == {0, 1, 2, 3}
    row = 32 * 4
    assert max(embeddings) == row


PEAK = """
import sys, torch, stat_prune
from pathlib import Path
folder = Path(sys.argv[1])
report = stat_prune.prune_checkpoint(
    folder / "dense",
    [{"input_ids": torch.arange(3, 20)}] * 4,
    output_dir=folder / "out",
    target=stat_prune.MACs(0.6),
    progress=False,
).report
assert 0.75 < report.predicted_peak_memory / report.peak_memory < 1.25
predicted = f"({report.predicted_peak_memory / 2**20:.0f} predicted)"
assert predicted in report.summary()  # a table may break the line
"""


def test_the_report_sets_the_predicted_peak_of_memory_beside_the_measured(tmp_path):
    """Of a tiny model nearly all is what the process has taken before, which is one of its own."""
    tiny_llama().save_pretrained(tmp_path / "dense")
    subprocess.run([sys.executable, "-W", "ignore", "-c", PEAK, str(tmp_path)], check=True)


LEAN = """
import sys, torch, stat_prune
from pathlib import Path
folder = Path(sys.argv[1])
stat_prune.prune_checkpoint(
    folder / "dense",
    [{"input_ids": torch.arange(3, 20)}] * 4,
    output_dir=folder / "out",
    target=stat_prune.MACs(0.6),
    progress=False,
)
heavy = sys.modules.keys() & {"sklearn", "pandas", "pyarrow", "datasets", "matplotlib"}
assert not heavy, heavy
"""


def test_libraries_of_a_hundred_megabytes_that_it_can_do_without_are_not_imported(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LEAN, str(tmp_path)], check=True)


def test_weights_come_back_as_saved_and_tied_ones_stay_one_when_forgotten(tmp_path, word_tokenizer):
    model = saved(tiny_llama(tie_word_embeddings=True), tmp_path / "dense", word_tokenizer)
    checkpoint = Checkpoint(tmp_path / "dense", torch.device("cpu"))
    names = [*checkpoint.outer_names(base=True, head=True), *checkpoint.layer_names(0)]
    checkpoint.load(names)
    for name in names:
        assert torch.equal(checkpoint.state_dict([name])[name], model.state_dict()[name]), name
    assert checkpoint.model.lm_head.weight is checkpoint.model.model.embed_tokens.weight
    checkpoint.release(names)
    assert all(parameter.is_meta for parameter in checkpoint.model.parameters())
    number = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    assert number == sum(parameter.numel() for parameter in model.parameters())


def same_files(first: Path, second: Path) -> bool:
    found = [
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (first, second)
    ]
    return found[0] == found[1]


@pytest.fixture
def both(tmp_path, word_tokenizer):
    """The result of each way, of one checkpoint."""
    saved(tiny_llama(num_hidden_layers=3), tmp_path / "dense", word_tokenizer)
    options = {"target": stat_prune.MACs(0.6), **LIKE}
    return (
        stat_prune.prune(str(tmp_path / "dense"), TEXTS, **options),
        stat_prune.prune_checkpoint(
            tmp_path / "dense", TEXTS, output_dir=tmp_path / "out", **options
        ),
    )


def test_results_of_either_way_are_used_alike(both, tmp_path):
    for number, result in enumerate(both):
        folder = tmp_path / str(number)
        result.save(folder)
        with pytest.raises(SaveError, match="exists"):
            result.save(folder)
        result.save(folder, overwrite=True)
        for kept in ("dense", "out"):
            with pytest.raises(SaveError, match="which would be lost|exists"):
                result.save(tmp_path / kept, overwrite=kept == "dense")
        found = result.load()
        assert found.tokenizer.get_vocab() == result.tokenizer.get_vocab()
        assert found.plan == result.plan and found.report == result.report
        assert found.source == result.source == str(tmp_path / "dense")
        assert isinstance(result, results.PrunedModel) and "parameters>" in repr(result)
        written = result.export(tmp_path / f"{number}-mlx", "mlx")
        assert (written.path / "tokenizer.json").is_file()
    first, second = (stat_prune.load(tmp_path / name).state_dict() for name in "01")
    assert first.keys() == second.keys()
    assert same_files(tmp_path / "1", tmp_path / "out")


def test_a_folder_of_which_nobody_knows_what_was_saved_is_not_copied(both, tmp_path):
    first, result = both
    first.save(tmp_path / "there")
    (tmp_path / "out" / MANIFEST_FILE).unlink()
    with pytest.raises(SaveError, match="no list of what was saved there"):
        result.save(tmp_path / "there", overwrite=True)
    assert stat_prune.load(tmp_path / "there").state_dict()


def test_a_copy_is_of_what_was_saved_and_read_by_nobody(both, tmp_path, monkeypatch):
    _, result = both
    (tmp_path / "out" / "notes.txt").write_text("not of this package")
    monkeypatch.setattr(results, "load", None)
    result.save(tmp_path / "copy")
    assert not (tmp_path / "copy" / "notes.txt").exists()
    result.save(tmp_path / "copy", overwrite=True)  # holds a saved model and nothing else
    with pytest.raises(SaveError, match="model that is to be saved"):
        result.save(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(SaveError, match="Could not save to"):
        result.save(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert [path.name for path in tmp_path.glob("*.saving-*")] == []
