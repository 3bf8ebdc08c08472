"""The benchmark of the second stage, on tiny models in the local form."""

from __future__ import annotations

import json

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import vib
import vib_methods
from stat_prune.evaluation import evaluate_glue


def called(*arguments: object):
    app = typer.Typer()
    app.command()(vib.main)
    given = ["--task", "sst2", "--model", "tiny-{task}", "--batch-size", 8, *arguments]
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
