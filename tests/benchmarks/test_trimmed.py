"""What `embeddings.py --trim` counts."""

from __future__ import annotations

import json

import pytest
import typer
from tiny_models import tiny_bert, tiny_llama
from transformers import BertForMaskedLM
from typer.testing import CliRunner

import embeddings
import trimmed

READ = ["the cat sat on the mat", "a cat sat on a mat"]
#: Two of words that are read, one that has another.
OTHERS = ["the mat sat on a cat", "on the cat", "the dog sat on the cat"]


def test_texts_in_tokens_that_stay_are_computed_as_before(word_tokenizer):
    found = trimmed.compare(tiny_bert(BertForMaskedLM), word_tokenizer, READ, OTHERS)

    lengths = [len(word_tokenizer(text)["input_ids"]) for text in OTHERS]
    assert found["texts read"] == 2
    assert found["other texts"] == 3
    assert found["changed"] == 1
    assert found["of kept tokens"] == found["states equal"] == 2
    assert found["tokens split"] == f"{1 / sum(lengths):.1%}"
    assert found["logits apart"] < 1e-5


def test_other_states_are_counted_as_such(word_tokenizer, monkeypatch):
    real = trimmed._output
    outputs = iter(range(100))
    monkeypatch.setattr(trimmed, "_output", lambda *given: real(*given) + next(outputs))

    found = trimmed.compare(tiny_bert(), word_tokenizer, READ, OTHERS)

    assert found["of kept tokens"] == 2
    assert found["states equal"] == 0
    assert found["logits equal"] is None


def test_each_model_at_hand_is_a_row(word_tokenizer, monkeypatch, tmp_path):
    at_hand = {
        "encoder": (lambda: (tiny_bert(), word_tokenizer), lambda: READ + OTHERS, 1),
        "decoder": (lambda: (tiny_llama(), word_tokenizer), lambda: READ + OTHERS, 0.5),
    }
    monkeypatch.setattr(trimmed, "AT_HAND", at_hand)
    monkeypatch.setattr(trimmed, "NUM_OTHERS", 3)
    app = typer.Typer()
    app.command()(embeddings.main)

    result = CliRunner().invoke(app, ["--trim", "2", "--output", str(tmp_path)])

    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "embeddings.json").read_text())
    assert [(one["model"], one["texts read"]) for one in records] == [
        ("encoder", 2),
        ("decoder", 1),
    ]
    table = (tmp_path / "embeddings.md").read_text().splitlines()
    assert len(table) == 4
    assert table[2].startswith("| encoder | ")


@pytest.mark.parametrize("arguments", [[], ["--trim", "0"]])
def test_nothing_to_measure_is_an_error(arguments):
    app = typer.Typer()
    app.command()(embeddings.main)

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 2
    assert "trim" in result.output
