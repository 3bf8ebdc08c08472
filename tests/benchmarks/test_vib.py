"""The benchmark of the second stage, on tiny models in the local form."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import vib
import vib_methods
from stat_prune.evaluation import evaluate_glue, perplexity
from stat_prune.vib import vib_finetune
from tasks import read_stories


def called(*arguments: object, task: str = "sst2"):
    app = typer.Typer()
    app.command()(vib.main)
    given = ["--task", task, "--model", "tiny-{task}", "--batch-size", 8, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def records(folder) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return {record["method"]: record for record in found}


def test_methods_meet_the_target_and_masks_alone_are_cheaper(at_hand, tmp_path):
    arguments = ["--kept", 0.6, "--steps", 20, "--output", tmp_path]
    for method in ("stat", "stat, then fine-tuning", "vib, full", "vib, masks"):
        arguments += ["--method", method]
    result = called(*arguments)
    assert result.exit_code == 0, result.output

    found = records(tmp_path)
    assert len(found) == 4
    assert all(0.5 < record["kept_cost"] <= 0.6 for record in found.values())
    assert found["stat"]["flops"] == 0
    assert 0 < found["vib, masks"]["flops"] < found["vib, full"]["flops"]
    assert f"| vib, full | {found['vib, full']['score']:.4f} |" in result.output

    (path,) = tmp_path.glob("*vib-masks.json")
    path.write_text(json.dumps(found["vib, masks"] | {"score": 0.1234}))
    assert "| vib, masks | 0.1234 |" in called(*arguments).output  # not measured again


def test_a_finish_reads_what_as_many_steps_of_distillation_do(at_hand, tmp_path):
    arguments = ["--kept", 0.6, "--steps", 16, "--output", tmp_path]
    scales, distilled = "stat, then scales", "stat, then distillation without labels"
    both = "vib, masks, then scales"
    for method in (scales, distilled, both):
        arguments += ["--method", method]
    result = called(*arguments)
    assert result.exit_code == 0, result.output

    found = records(tmp_path)
    # Sequences held out are measured besides, and a fit that gains nothing ends or begins again.
    assert all(0.2 < found[one]["flops"] / found[distilled]["flops"] < 2 for one in (scales, both))
    assert all(record["settings"]["finish"] == "scales" for record in (found[scales], found[both]))
    assert all(0.5 < record["kept_cost"] <= 0.6 for record in found.values())


def test_held_out_examples_are_scored_and_no_method_sees_them(at_hand, tmp_path, monkeypatch):
    seen, scored = [], []

    def trains(model, data, **_):
        seen.extend(data)
        raise InterruptedError

    def scores(model, tokenizer, task, data, **_):
        scored.extend(data.texts)
        return evaluate_glue(model, tokenizer, task, data)

    monkeypatch.setattr(vib_methods, "vib_finetune", trains)
    monkeypatch.setattr(vib_methods, "evaluate_glue", scores)
    arguments = ["--kept", 0.6, "--held-out", 20, "--steps", 2, "--output", tmp_path]
    called(*arguments, "--method", "stat")
    called(*arguments, "--method", "vib, full")

    assert records(tmp_path)["stat"]["held_out"] == 20
    train = (at_hand / "data" / "glue" / "sst2" / "train.tsv").read_text()
    assert len(seen) == 40
    assert len(set(scored)) == 20 and all(f"{text}\t" in train for text in scored)
    assert not set(scored) & {row["sentence"] for row in seen}


@pytest.fixture
def stories_at_hand(at_hand, tmp_path, monkeypatch):
    """A tiny Llama and 430 stories, 200 of which are scored."""
    folder = tmp_path / "data_folder"
    shutil.copytree(at_hand / "models/tiny-llama", folder / "models/llama-tinystories-656k")
    (folder / "data/tinystories").mkdir(parents=True)
    draw = random.Random(0)
    words = "the a cat dog bird sat ran flew".split()
    stories = [" ".join(draw.choices(words, k=12)) for _ in range(430)]
    (folder / "data/tinystories/stories_1000.json").write_text(json.dumps(stories))
    monkeypatch.setenv("STAT_PRUNE_DATA", str(folder))
    read_stories.cache_clear()
    yield stories
    read_stories.cache_clear()


def test_held_out_stories_are_none_of_those_that_are_scored_or_trained_on(
    stories_at_hand, tmp_path, monkeypatch
):
    seen, scored = [], []

    def scores(model, tokenizer, texts, **_):
        scored.extend(texts)
        return perplexity(model, tokenizer, texts)

    def trains(model, data, **settings):
        seen.extend(data)
        return vib_finetune(model, data, **settings)

    monkeypatch.setattr(vib_methods, "perplexity", scores)
    monkeypatch.setattr(vib_methods, "vib_finetune", trains)
    arguments = ["--kept", 0.7, "--held-out", 20, "--steps", 16, "--method", "vib, masks"]
    arguments += ["--field", "logit_weight=0.25", "--output", tmp_path / "out"]
    result = called(*arguments, task="stories")
    assert result.exit_code == 0, result.output

    record = records(tmp_path / "out")["vib, masks"]
    assert record["metric"] == "perplexity" and record["score"] > 1
    assert record["settings"]["vib"]["logit_weight"] == 0.25
    assert "logit_weight=0.25" in result.output
    assert len(set(scored)) == 20 and len(seen) == 210
    assert not set(scored) & {*seen, *stories_at_hand[200:400]}
    assert not set(seen) & set(stories_at_hand[200:400])


def test_a_field_without_a_value_is_refused(at_hand, tmp_path):
    result = called("--field", "logit_weight", "--output", tmp_path)
    assert result.exit_code == 2 and "hidden_weight=0.5" in result.output


def test_the_products_of_attention_are_counted_as_those_of_its_formula(at_hand):
    folder = at_hand / "models" / "tiny-sst2"
    ids = torch.randint(5, 20, (2, 16), generator=torch.Generator().manual_seed(0))
    counts = []
    for attention in ("sdpa", "eager"):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation=attention
        )
        with FlopCounterMode(display=False, custom_mapping=vib_methods.ATTENTION) as counter:
            model(input_ids=ids).logits.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] >= counts[1]
    # the fused kernel computes its scores again on the way back
    config = model.config
    scores = 2 * 2 * 16 * 16 * config.hidden_size * config.num_hidden_layers
    assert counts[0] - counts[1] == scores
