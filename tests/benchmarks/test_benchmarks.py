"""Each script from its command line to its records, on tiny models in the local form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from small_record import RECORD
from tiny_models import tiny_bert
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from typer.testing import CliRunner

import finetune
import glue
import into_docs
import retention
import speed
import squad
import table
import wikitext2
import zero_shot
from harness import records
from harness.runners import RUNNERS
from harness.sources import data_folder, find_data, find_model
from harness.texts import check_apart, read_texts
from stat_prune.errors import DataError
from stat_prune.evaluation import evaluate_glue, evaluate_squad, perplexity, read_squad

ROOT = Path(__file__).parents[2]
SMALL = ["--samples", "40", "--budget", "0.6", "--method", "stat", "--method", "random"]


def called(main, *arguments: object):
    """The result of a script's command line."""
    app = main
    if not isinstance(main, typer.Typer):
        app = typer.Typer()
        app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def record(path) -> dict:
    content = json.loads(path.read_text())
    return records.read(path, content["conditions"])


def test_glue_scores_as_the_package_does(at_hand, tmp_path):
    result = called(
        glue.main, "--task", "sst2", "--model", "tiny-{task}", *SMALL, "--output", tmp_path
    )

    assert result.exit_code == 0, result.output
    found = record(tmp_path / "sst2-stat-0.json")
    folder = at_hand / "models" / "tiny-sst2"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = evaluate_glue(
        model, AutoTokenizer.from_pretrained(folder), "sst2", at_hand / "data" / "glue"
    )
    assert found["dense"] == expected["accuracy"]
    assert found["settings"]["target"] == "MACs(fraction=0.6, seq_length=25.16)"
    assert found["conditions"]["calibrated on"] == "40 examples of train"
    assert found["settings"]["model"] == "tiny-sst2"  # and not where it lies
    assert found["sizes"]["0.6"]["kept_macs"] <= 0.6


def test_glue_calibrates_on_train_only(at_hand, tmp_path, monkeypatch):
    (at_hand / "data" / "glue" / "sst2" / "train.tsv").rename(tmp_path / "train.tsv")
    try:
        result = called(
            glue.main, "--task", "sst2", "--model", "tiny-sst2", *SMALL, "--output", tmp_path / "o"
        )
    finally:
        (tmp_path / "train.tsv").rename(at_hand / "data" / "glue" / "sst2" / "train.tsv")
    assert result.exit_code == 1
    assert re.search(r"error: There is no .*train\.tsv", result.output)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_scores_as_the_package_does(version, at_hand, tmp_path):
    window = ["--max-seq-length", "96", "--stride", "4"]
    result = called(
        squad.main,
        *("--model", "tiny-squad", "--version", version, *window, *SMALL),
        *("--limit", 20, "--output", tmp_path),
    )

    assert result.exit_code == 0, result.output
    found = record(tmp_path / f"squad-v{version}-random-0.json")
    folder = at_hand / "models" / "tiny-squad"
    expected = evaluate_squad(
        AutoModelForQuestionAnswering.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        at_hand / "data" / "squad" / f"dev-v{version}.json",
        limit=20,
        max_seq_length=96,
        stride=4,
    )
    assert found["details"]["dense"] == expected
    assert ("unanswerable_exact_match" in expected) == (version == "2.0")
    assert found["settings"]["target"] == "MACs(fraction=0.6, seq_length=170)"
    assert f"20 of dev, evenly spaced, v{version}" in (tmp_path / "squad.md").read_text()


def test_wikitext2_prints_context_and_calibration_beside_the_figure(at_hand, tmp_path):
    result = called(wikitext2.main, "--model", "tiny-llama", *SMALL, "--output", tmp_path)

    assert result.exit_code == 0, result.output
    found = record(tmp_path / "wikitext2-stat-0.json")
    folder = at_hand / "models" / "tiny-llama"
    texts = [(at_hand / "data" / "wikitext2" / "test.txt").read_text()]
    for protocol in ("blocks", "sliding"):
        expected = perplexity(
            AutoModelForCausalLM.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            texts,
            context_length=32,
            mode=protocol,
        )["perplexity"]
        assert found["details"]["dense"][f"perplexity ({protocol})"] == pytest.approx(expected)
    table = (tmp_path / "wikitext2.md").read_text()
    assert "context length: 32" in table
    assert "calibrated on: 40 blocks of train.txt" in table


@pytest.mark.parametrize("disguise", [str.upper, lambda text: text.replace(" ", " @-@ ")])
def test_calibrating_on_the_test_text_is_refused_whatever_its_name(disguise, at_hand, tmp_path):
    test = (at_hand / "data" / "wikitext2" / "test.txt").read_text().splitlines()
    train = (at_hand / "data" / "wikitext2" / "train.txt").read_text().splitlines()
    mixed = tmp_path / "innocent.json"
    mixed.write_text(json.dumps([*train, disguise(test[7])]))

    result = called(
        wikitext2.main,
        *("--model", "tiny-llama", "--calibration", mixed, *SMALL, "--output", tmp_path / "o"),
    )

    assert result.exit_code == 1
    assert "Calibrate on the train split" in result.output
    assert not list((tmp_path / "o").glob("*.json"))


@pytest.mark.realdata
def test_splits_of_wikitext_are_told_apart(real_data):
    folder = real_data / "data" / "wikitext2"
    test = read_texts(folder / "test.txt")
    check_apart(read_texts(folder / "train_1000_paragraphs.json"), test)
    check_apart(read_texts(folder / "valid.txt"), test)
    with pytest.raises(DataError, match="Robert"):
        check_apart([test[0].replace(" , ", ", ").replace(" @-@ ", "-")], test)


def test_retention_keeps_its_command_line(tmp_path, monkeypatch, at_hand):
    (tmp_path / "sst2-stat-0.json").write_text(json.dumps(RECORD))
    arguments = ["--task", "sst2", "--method", "stat", "--seed", "0", "--budget", "0.5"]

    result = called(retention.main, *arguments, "--output", tmp_path)

    assert result.exit_code == 0, result.output
    assert "| stat | 0.8000 |" in result.output


@pytest.mark.slow
def test_every_way_to_run_a_model_computes_the_same():
    model = tiny_bert()
    batch = {
        "input_ids": torch.arange(32).reshape(2, 16),
        "attention_mask": torch.ones(2, 16).long(),
    }
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        for name, runner in RUNNERS.items():
            if name == "onnx":
                pytest.importorskip("onnxscript")
                pytest.importorskip("onnxruntime")
            found = torch.as_tensor(runner(model, batch)()[0])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_speed_sets_speed_up_beside_kept_macs(tmp_path, local):
    arguments = [
        *("--model", local / "models" / "tiny-sst2", "--shape", "2x16", "--mode", "eager"),
        *("--samples", "60", "--budget", "0.5", "--rounds", "2", "--output", tmp_path),
    ]
    result = called(speed.main, *arguments)

    assert result.exit_code == 0, result.output
    found = record(tmp_path / "2x16-eager.json")
    seconds = {name: cell["seconds"] for name, cell in found["details"].items()}
    assert found["scores"]["0.5"] == seconds["dense"] / seconds["0.5"]
    assert 0.3 < found["sizes"]["0.5"]["kept_macs"] <= 0.5
    assert record(tmp_path / "pruning.json")["scores"]["0.5"] > 0
    before = (tmp_path / "2x16-eager.json").stat().st_mtime_ns
    assert called(speed.main, *arguments).exit_code == 0
    assert (tmp_path / "2x16-eager.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_decoder_trained_from_scratch_learns_its_text_and_goes_on(tmp_path):
    """A text of one sentence, over and over, is soon no surprise."""
    text = tmp_path / "train.txt"
    text.write_text("the cat sat on the mat and the dog ran under a tree .\n" * 300)
    shape = ["--hidden-size", 32, "--layers", 1, "--vocabulary", 300, "--context-length", 32]
    arguments = ["wikitext2", "--from-scratch", "--text", text, *shape, "--learning-rate", 0.01]

    result = called(finetune.app, *arguments, "--epochs", 4, "--output", tmp_path / "model")

    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert perplexity(model, tokenizer, [text.read_text()])["perplexity"] < 2
    steps = json.loads((last(tmp_path) / "trainer_state.json").read_text())["global_step"]
    # Started again for longer, it does not begin anew: training goes on at the last step.
    called(finetune.app, *arguments, "--epochs", 5, "--output", tmp_path / "model")
    history = json.loads((last(tmp_path) / "trainer_state.json").read_text())
    assert history["global_step"] == steps * 5 // 4


def last(folder):
    return max((folder / "model" / "training").iterdir(), key=lambda path: int(path.name[11:]))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["glue", "squad"])
def test_fine_tuned_models_are_loaded_by_the_benchmarks(task, at_hand, tmp_path):
    data, models = at_hand / "data", at_hand / "models"
    if task == "glue":
        special = ["--model", models / "tiny-sst2", "--task", "sst2", "--data", data / "glue"]
    else:
        special = ["--model", models / "tiny-squad", "--max-seq-length", 96, "--stride", 4]
        special += ["--data", data / "squad" / "train-v2.0.json"]
    short = ["--epochs", 1, "--limit", 24, "--batch-size", 8, "--output", tmp_path / "model"]

    result = called(finetune.app, task, *special, *short)

    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    if task == "glue":
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        scores = evaluate_glue(model, tokenizer, "sst2", data / "glue")
        assert scores["num_examples"] == 60
    else:
        model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model")
        questions = read_squad(data / "squad" / "dev-v2.0.json")
        scores = evaluate_squad(model, tokenizer, questions, max_seq_length=96, stride=4)
        assert scores["num_examples"] == 30


def test_recipes_say_what_they_miss(tmp_path):
    result = called(finetune.app, "wikitext2", "--from-scratch", "--output", tmp_path)
    assert result.exit_code == 2 and "--text" in result.output
    result = called(finetune.app, "wikitext2", "--output", tmp_path)
    assert result.exit_code == 2 and "--from-scratch or --model" in result.output


def test_names_are_folders_then_local_models_then_of_the_hub(at_hand, monkeypatch):
    assert find_model("tiny-llama") == str(at_hand / "models" / "tiny-llama")
    assert find_model(str(at_hand)) == str(at_hand)
    assert find_model("owner/name") == "owner/name"
    assert find_data(None, "nowhere", "glue") == at_hand / "data" / "glue"
    assert find_data(None, "nowhere") is None
    monkeypatch.delenv("STAT_PRUNE_DATA")
    assert find_data(None, "glue") is None
    with pytest.raises(DataError, match="Set STAT_PRUNE_DATA"):
        data_folder()


def test_the_commands_of_the_docs_are_understood():
    """Every option in the documented commands is one that its script has."""
    scripts = {
        "glue": glue.main,
        "squad": squad.main,
        "wikitext2": wikitext2.main,
        "zero_shot": zero_shot.main,
        "speed": speed.main,
        "table": table.main,
        "into_docs": into_docs.main,
        "retrieval": pytest.importorskip("retrieval").main,
        "finetune": finetune.app,
    }
    found = 0
    for name in ("benchmarks.md", "reproducing.md"):
        text = (ROOT / "docs" / name).read_text().replace("\\\n", " ")
        for script, words in re.findall(r"python benchmarks/(\w+)\.py (.*)", text):
            command = [words.split()[0]] if script == "finetune" else []
            shown = called(scripts[script], *command, "--help").output
            for option in re.findall(r"--[\w-]+", words.split("  #")[0]):
                found += 1
                assert option in shown, (script, option)
    assert found > 40
